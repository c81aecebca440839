"""Numbers of the server for Prometheus, in its text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """Of one server; two servers in one process do not share them."""

    def __init__(self):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # resident memory, CPU seconds, file descriptors
        self.requests = Counter(
            "wam_requests", "Requests by how they ended: ok, refused, limited, failed, gone.", ["outcome"],
            registry=self.registry,
        )  # fmt: skip
        self.rejected = Counter(
            "wam_rejected_connections", "Connections that never became a session.", ["reason"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "wam_request_seconds", "From a request's message to its answer.", buckets=_SECONDS, registry=self.registry
        )
        self.call_seconds = Histogram(
            "wam_policy_call_seconds", "Of one call of the policy.", ["mode", "size"], buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.rows = Counter("wam_policy_rows", "Requests answered by calls of the policy.", ["mode"],
                            registry=self.registry)  # fmt: skip

    def watch(self, name: str, about: str, value: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        Gauge(name, about, registry=self.registry).set_function(value)

    def call(self, mode: str, rows: int, size: int, seconds: float) -> None:
        self.call_seconds.labels(mode, str(size)).observe(seconds)
        self.rows.labels(mode).inc(rows)

    def page(self) -> bytes:
        return generate_latest(self.registry)
