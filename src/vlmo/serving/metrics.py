"""Figures for Prometheus."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counts of one server; another one in the same process has its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._requests = Counter(
            "vlmo_requests", "Requests by route and status", ["method", "route", "status"], registry=self._registry
        )
        self._latency = Histogram(
            "vlmo_request_seconds",
            "Seconds from the head of a request to the end of its answer",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._queue = Gauge("vlmo_queue_length", "Requests that are let in and not answered", registry=self._registry)
        self._rows = Histogram(
            "vlmo_batch_rows", "Rows of a call of the model", ["kind"], buckets=_ROWS, registry=self._registry
        )
        self._batch = Histogram(
            "vlmo_batch_seconds", "Seconds of a call of the model", ["kind"], buckets=_SECONDS, registry=self._registry
        )

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts a request that has been answered."""
        self._requests.labels(method, route, str(status)).inc()
        self._latency.labels(route).observe(seconds)

    def queue(self, length: int) -> None:
        """Sets the length of the queue."""
        self._queue.set(length)

    def batch(self, kind: str, rows: int, seconds: float) -> None:
        """Counts a call of the model."""
        self._rows.labels(kind).observe(rows)
        self._batch.labels(kind).observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self._registry)
