"""How long an answer will be: the mean of what the tenant's requests for the model got before."""

from __future__ import annotations

DEFAULT_OUTPUT_TOKENS = 256
"""For a tenant and model not seen before."""

_NEW_PART = 0.2
"""The newest answer's part of the mean: about the last five count (VTC's `predict_window`)."""

_KEPT = 10_000


class Predictor:
    """Remembers at most `kept` pairs of tenant and model, those that answered last."""

    def __init__(self, *, default_output_tokens: int = DEFAULT_OUTPUT_TOKENS, kept: int = _KEPT) -> None:
        self._default = float(default_output_tokens)
        self._kept = kept
        self._means: dict[tuple[str, str], float] = {}

    def __len__(self) -> int:
        return len(self._means)

    def output_tokens(self, tenant: str, model: str, max_tokens: int | None) -> int:
        """The predicted answer in tokens, at least 1 and no more than `max_tokens`."""
        mean = self._means.get((tenant, model))
        tokens = max(1, round(self._default if mean is None else mean))
        return tokens if max_tokens is None else max(1, min(tokens, max_tokens))

    def answered(self, tenant: str, model: str, output_tokens: int) -> None:
        """An answer ended by itself or at its limit, not because its client went away."""
        key = (tenant, model)
        mean = self._means.pop(key, None)
        if mean is None and len(self._means) >= self._kept:
            del self._means[next(iter(self._means))]
        self._means[key] = float(output_tokens) if mean is None else mean + _NEW_PART * (output_tokens - mean)
