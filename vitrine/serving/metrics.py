"""The server's metrics, in Prometheus' text format."""

from bisect import bisect_left
from collections import Counter

BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Histogram:
    """A histogram of durations."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, duration_s: float) -> None:
        """One more."""
        self.counts[bisect_left(BOUNDS_S, duration_s)] += 1
        self.sum_s += duration_s

    def lines(self, name: str) -> list[str]:
        """In Prometheus' format: buckets are cumulative."""
        found, total = [], 0
        for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), self.counts, strict=True):
            total += count
            found.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*found, f"{name}_sum {self.sum_s}", f"{name}_count {total}"]


class Metrics:
    """All metrics of the server."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.read = self.written = self.dropped = 0
        self.duration, self.first = Histogram(), Histogram()

    def to_text(self, writing: int, waiting: int, ready: bool) -> str:
        """All metrics as text. writing, waiting: the numbers of texts now."""
        parts: list[str | tuple[str, str, str]] = [
            ("requests_total", "counter", "Requests, by path and status."),
            *(f'vitrine_requests_total{{path="{path}",status="{status}"}} {count}'
              for (path, status), count in sorted(self.requests.items())),
            ("prompt_tokens_total", "counter", "Tokens of prompts."),
            f"vitrine_prompt_tokens_total {self.read}",
            ("generated_tokens_total", "counter", "Tokens written."),
            f"vitrine_generated_tokens_total {self.written}",
            ("dropped_requests_total", "counter", "Requests whose client disconnected before the end."),
            f"vitrine_dropped_requests_total {self.dropped}",
            ("texts_writing", "gauge", "Texts being written."),
            f"vitrine_texts_writing {writing}",
            ("texts_waiting", "gauge", "Texts that wait for a row."),
            f"vitrine_texts_waiting {waiting}",
            ("ready", "gauge", "Whether the model is loaded."),
            f"vitrine_ready {int(ready)}",
            ("request_duration_seconds", "histogram", "From a request to the end of its answer."),
            *self.duration.lines("vitrine_request_duration_seconds"),
            ("first_token_seconds", "histogram", "From a request to its first token."),
            *self.first.lines("vitrine_first_token_seconds"),
        ]  # fmt: skip
        lines = []
        for part in parts:
            if isinstance(part, tuple):
                name, kind, about = part
                lines += [f"# HELP vitrine_{name} {about}", f"# TYPE vitrine_{name} {kind}"]
            else:
                lines.append(part)
        return "\n".join(lines) + "\n"
