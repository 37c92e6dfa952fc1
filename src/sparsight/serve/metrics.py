"""What a server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from .batching import Batcher

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one server, in a registry of its own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = of = CollectorRegistry()
        ProcessCollector(registry=of)
        about, by = "Requests, by status; 499: the client hung up.", ("endpoint", "recipe", "status")
        self.requests = Counter("sparsight_requests", about, by, registry=of)
        about = "From the first byte to the answer."
        self.seconds = Histogram("sparsight_request_seconds", about, ("endpoint",), buckets=SECONDS, registry=of)
        self.forward = Histogram("sparsight_forward_seconds", "Forwards.", ("recipe",), buckets=SECONDS, registry=of)
        self.sizes = Histogram("sparsight_batch_images", "Images in a forward.", ("recipe",), buckets=SIZES, registry=of)
        self.active = Gauge("sparsight_active_requests", "Requests that are read, decoded, waiting or computed.", registry=of)
        self.waiting = Gauge("sparsight_waiting_images", "Images that wait for the engine.", registry=of)

    def watch(self, batcher: Batcher) -> None:
        """Show how many images wait."""
        self.waiting.set_function(lambda: batcher.waiting)

    def note_request(self, endpoint: str, recipe: str, status: int, seconds: float) -> None:
        self.requests.labels(endpoint, recipe, str(status)).inc()
        self.seconds.labels(endpoint).observe(seconds)

    def note_forward(self, recipe: str, images: int, seconds: float) -> None:
        self.forward.labels(recipe).observe(seconds)
        self.sizes.labels(recipe).observe(images)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
