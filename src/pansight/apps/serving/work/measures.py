"""What Prometheus is told about a server: requests, batches, queues, and what is kept."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import Scope

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Measures:
    """The figures of one server, in a registry of its own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def counter(name: str, told: str, *labels: str) -> Counter:
            return Counter(f"pansight_{name}", told, labels, registry=registry)

        def histogram(name: str, told: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"pansight_{name}", told, labels, registry=registry, buckets=buckets)

        self.requests = counter("requests", "Requests by route, method and status", "route", "method", "status")
        self.seconds = histogram("request_seconds", "From the head of a request to its answer", SECONDS, "route")
        self.stage = histogram("stage_seconds", "Of a photo or batch in each stage", SECONDS, "model", "stage")
        self.batch = histogram("batch_photos", "Photos that the network saw at once", BATCHES, "model")
        self.events = counter("label_studio_events", "Events of Label Studio", "action")
        self.busy = Gauge("pansight_requests_busy", "Requests that are worked on or wait", registry=registry)
        self.kept = Gauge("pansight_kept_bytes", "Bytes of network outputs kept for sliders", registry=registry)

    def request(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request. Its route is the template, never the path that was asked for, of which there is no end."""
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD") else "other"
        self.requests.labels(route, method, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """In the format that Prometheus reads."""
        return generate_latest(self.registry)
