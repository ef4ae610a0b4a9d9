"""Metrics, spans and log lines of a finished request."""

import json
import logging

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway.metering import UsageEvent
from gateway.telemetry import Metrics, Telemetry, Tracing, TracingError
from gateway.telemetry._log import JsonFormatter
from gateway.wire import Usage

EVENT = UsageEvent(
    id="req-1",
    tenant="acme",
    key="acme-ci",
    model="tiny",
    endpoint="/v1/chat/completions",
    status="ok",
    replica="127.0.0.1:9001",
    usage=Usage(input_tokens=1500, input_cached_tokens=600, output_tokens=64),
    cost_nanousd=130_100,
    arrived_ms=1_000,
    admitted_ms=1_001,
    first_token_ms=1_050,
    ended_ms=1_400,
)


def test_a_finished_request_is_in_the_metrics() -> None:
    """Requests, tokens by kind, dollars and the time to the first token are there at the next scrape."""
    metrics = Metrics()
    metrics.count(EVENT)
    metrics.count(EVENT)
    text = metrics.exposition().decode()
    assert (
        'mtok_requests_total{code="",endpoint="/v1/chat/completions",model="tiny",status="ok",tenant="acme"} 2.0'
        in text
    )
    assert 'mtok_tokens_total{kind="input",model="tiny",tenant="acme"} 3000.0' in text
    assert 'mtok_tokens_total{kind="input_cached",model="tiny",tenant="acme"} 1200.0' in text
    assert 'mtok_tokens_total{kind="output",model="tiny",tenant="acme"} 128.0' in text
    assert 'mtok_cost_usd_total{model="tiny",tenant="acme"} 0.0002602' in text
    assert 'mtok_ttft_seconds_bucket{le="0.05",model="tiny"} 2.0' in text
    assert 'mtok_ttft_seconds_bucket{le="0.025",model="tiny"} 0.0' in text
    assert 'mtok_request_seconds_bucket{le="+Inf",model="tiny"} 2.0' in text
    assert 'mtok_request_seconds_count{model="tiny"} 2.0' in text
    assert 'mtok_request_seconds_sum{model="tiny"} 0.8' in text


def test_a_scrape_counts_nothing_twice() -> None:
    """Passing sums on starts them anew."""
    metrics = Metrics()
    metrics.count(EVENT)
    assert metrics.exposition() == metrics.exposition()


def test_a_request_is_a_span_below_its_client() -> None:
    """The span has the request's times and numbers, and continues the trace the client sent."""
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter)
    Telemetry(Metrics(), tracing).count(EVENT, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    tracing.close()
    (span,) = exporter.get_finished_spans()
    assert span.name == "/v1/chat/completions"
    assert (span.start_time, span.end_time) == (1_000_000_000, 1_400_000_000)
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert span.attributes is not None
    assert span.attributes["gen_ai.usage.output_tokens"] == 64
    assert span.attributes["mtok.tenant"] == "acme"


def test_a_client_that_samples_nothing_makes_no_span() -> None:
    """The client's decision is followed."""
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter)
    tracing.record(EVENT, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")
    tracing.close()
    assert exporter.get_finished_spans() == ()


def test_an_exporter_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt exporter stops the start instead of dropping every span."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "oltp")
    with pytest.raises(TracingError, match="'oltp'; write none, console or otlp"):
        Tracing.from_environment()


def test_a_log_line_is_one_json_object() -> None:
    """Level, logger, message and the record's own data, on one line."""
    record = logging.LogRecord("gateway.x", logging.WARNING, __file__, 1, "lost %s", ("r1",), None)
    record.data = {"request_id": "req-1"}
    line = json.loads(JsonFormatter().format(record))
    assert (line["level"], line["logger"], line["message"], line["request_id"]) == (
        "warning",
        "gateway.x",
        "lost r1",
        "req-1",
    )
