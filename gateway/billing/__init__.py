"""A month's bill: lines that add up to the ledger to the nano-dollar, and what else is on it."""

from ._bill import Bill, BillLine, Credit, Shortfall, Sold, make_bill, sold
from ._exported import exported_events
from ._month import Month, parse_month
from ._read import BillError, read_bill
from ._render import bill_csv, bill_html, bill_text

__all__ = [
    "Bill",
    "BillError",
    "BillLine",
    "Credit",
    "Month",
    "Shortfall",
    "Sold",
    "bill_csv",
    "bill_html",
    "bill_text",
    "exported_events",
    "make_bill",
    "parse_month",
    "read_bill",
    "sold",
]
