"""JSON as the simulator reads and writes it: compact, not escaped beyond need, keys in the order given."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

# Recursive aliases defeat mypy's inference of literals here; what is read is checked field by field anyway.
Json: TypeAlias = object

dumps = msgspec.json.Encoder().encode
