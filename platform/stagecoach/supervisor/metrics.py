"""`/metrics` for Prometheus (interfaces.md section 4), made from the last progress when it is asked for."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stagecoach.contract.job import Progress

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class ProgressCollector(Collector):
    """`look` gives the last progress and the seconds since a rank moved; (None, 0) before the first attempt."""

    def __init__(self, look: Callable[[], tuple[Progress | None, float]]) -> None:
        self._look = look

    def collect(self) -> Iterator[Metric]:
        progress, age_s = self._look()
        if progress is None:
            return
        yield GaugeMetricFamily("stagecoach_attempt", "The attempt that runs", progress.attempt)
        yield GaugeMetricFamily("stagecoach_step", "Last complete optimizer step", progress.step)
        yield GaugeMetricFamily("stagecoach_last_committed_step", "Step of the last committed checkpoint", progress.committed_step)
        yield GaugeMetricFamily("stagecoach_tokens_total", "Tokens trained on in this stage", progress.tokens)
        yield GaugeMetricFamily("stagecoach_heartbeat_age_seconds", "Since the rank that is silent longest moved", age_s)
        if progress.loss is not None:
            yield GaugeMetricFamily("stagecoach_loss", "Loss of the last step", progress.loss)
        if progress.mfu is not None:
            yield GaugeMetricFamily("stagecoach_mfu", "Model FLOPs utilisation", progress.mfu)
        seconds = GaugeMetricFamily("stagecoach_seconds_total", "Wall time of this attempt by what it was spent on", labels=["bucket"])
        for bucket, value in progress.seconds.items():
            seconds.add_metric([bucket], value)
        yield seconds


def build_registry(look: Callable[[], tuple[Progress | None, float]]) -> CollectorRegistry:
    """A registry with nothing but ours."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ProgressCollector(look))
    return registry


def render(registry: CollectorRegistry) -> bytes:
    """The text Prometheus reads."""
    return generate_latest(registry)
