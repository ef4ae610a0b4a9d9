"""Mtok: the OpenAI-compatible metering gateway for vLLM fleets."""
