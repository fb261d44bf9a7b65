"""Traces: an item's way from the event to the point, as OpenTelemetry tells it. Off by default.

    event (intake) ──message──> sync (worker) ─┬─ fetch
                                               ├─ encode ── decode
                                               ├─ fuse
                                               └─ upsert

The context travels in the message's headers. Without AUDIOFUSE_TRACES_URL a span is nothing, and
OpenTelemetry, which is the extra ``otel``, is not even imported.
"""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.settings import PREFIX, Settings

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer, TracerProvider

NS = 1_000_000_000

_tracer: "Tracer | None" = None


def start_tracing(settings: Settings, process: str) -> None:
    """Send traces of this process, if the settings say where; from a thread, in batches.

    Raises ``ConfigurationError`` if OpenTelemetry is not installed.
    """
    if not settings.traces_url:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigurationError(
            f"{PREFIX}TRACES_URL is set, but OpenTelemetry is missing: install audiofuse[otel]"
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": f"audiofuse-{process}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(settings.traces_url)))
    trace_with(provider)


def trace_with(provider: "TracerProvider | None") -> None:
    """Give spans to a provider from here on, or to nobody."""
    global _tracer  # noqa: PLW0603 - one for the process, as logging has it
    _tracer = provider.get_tracer("audiofuse") if provider else None


def span(
    name: str, carried: Mapping[str, Any] | None = None, **about: str
) -> AbstractContextManager[object]:
    """Return a span around what is done in it; one that goes on with what was ``carried``."""
    if _tracer is None:
        return nullcontext()
    context = _propagator().extract(carried) if carried is not None else None
    return _tracer.start_as_current_span(name, context, attributes=about)


def carry() -> dict[str, str]:
    """Return the headers of a message by which its receiver goes on with the present span."""
    headers: dict[str, str] = {}
    if _tracer is not None:
        _propagator().inject(headers)
    return headers


def happened(name: str, seconds: float) -> None:
    """Tell of something that ends now, and took so long in all, perhaps with pauses."""
    if _tracer is not None:
        now = time.time_ns()
        _tracer.start_span(name, start_time=now - int(seconds * NS)).end(now)


def annotate(**about: str) -> None:
    """Say more about the present span."""
    if _tracer is not None:
        from opentelemetry.trace import get_current_span

        get_current_span().set_attributes(about)


def _propagator() -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator()
