"""What tenants see of replicas."""

from __future__ import annotations

from hashlib import blake2s


def replica_alias(name: str) -> str:
    """A name that stands for a replica: always the same, so that usage can be split by it, but no address. Where the
    platform's engines listen is not a tenant's business."""
    return name and f"replica-{blake2s(name.encode(), digest_size=4).hexdigest()}"
