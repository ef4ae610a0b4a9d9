"""Is this fleet set up as Mtok needs it? Asking is I/O and at the edge (`examine`); what the answers mean is pure."""

from ._ask import examine
from ._facts import Answer, Disk, LongPrompt, ReplicaFacts, StoreFacts, TokenizerFacts
from ._findings import Finding, Severity
from ._place import judge_place, judge_store
from ._replica import judge_replica, judge_replicas, judge_tokenizer

__all__ = [
    "Answer",
    "Disk",
    "Finding",
    "LongPrompt",
    "ReplicaFacts",
    "Severity",
    "StoreFacts",
    "TokenizerFacts",
    "examine",
    "judge_place",
    "judge_replica",
    "judge_replicas",
    "judge_store",
    "judge_tokenizer",
]
