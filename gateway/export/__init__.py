"""Usage for others' books: exports to files, a push of CloudEvents, FOCUS cost rows, and corrections."""

from ._corrections import CannotCorrect, Correction, correct, correction_event
from ._cursor import CursorError, CursorFile, Position, opened, parse_after, publish, shown_after
from ._export import Exported, Span, arrived, export, output_file
from ._focus import FOCUS_COLUMNS, Ratios, export_focus, focus_rows, split_cost
from ._formats import FORMATS, Format, FormatUnavailable, Writer, writer
from ._rows import COLUMNS
from ._sink import Sink, SinkSettings

__all__ = [
    "COLUMNS",
    "FOCUS_COLUMNS",
    "FORMATS",
    "CannotCorrect",
    "Correction",
    "CursorError",
    "CursorFile",
    "Exported",
    "Format",
    "FormatUnavailable",
    "Position",
    "Ratios",
    "Sink",
    "SinkSettings",
    "Span",
    "Writer",
    "arrived",
    "correct",
    "correction_event",
    "export",
    "export_focus",
    "focus_rows",
    "opened",
    "output_file",
    "parse_after",
    "publish",
    "shown_after",
    "split_cost",
    "writer",
]
