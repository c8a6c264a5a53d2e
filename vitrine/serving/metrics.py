"""The server's metrics, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """All metrics of the server. Every name begins with `vitrine_`."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "vitrine_requests", "Requests, by path and status.", ["path", "status"], registry=registry
        )
        self.read = Counter("vitrine_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.written = Counter("vitrine_generated_tokens", "Tokens written.", registry=registry)
        self.dropped = Counter(
            "vitrine_dropped_requests", "Requests whose client disconnected before the end.", registry=registry
        )
        self.writing = Gauge("vitrine_texts_writing", "Texts being written.", registry=registry)
        self.waiting = Gauge("vitrine_texts_waiting", "Texts that wait for a row.", registry=registry)
        self.ready = Gauge("vitrine_ready", "Whether the model is loaded.", registry=registry)
        self.duration = Histogram(
            "vitrine_request_duration_seconds",
            "From a request to the end of its answer.",
            buckets=BOUNDS_S,
            registry=registry,
        )
        self.first = Histogram(
            "vitrine_first_token_seconds", "From a request to its first token.", buckets=BOUNDS_S, registry=registry
        )

    def to_bytes(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
