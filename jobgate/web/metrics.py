"""
`GET /metrics`: the counters, as Prometheus wants them.

Nothing is counted here: the numbers are read where they are kept when somebody asks,
all in one turn of the loop, so that conservation holds at every scrape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from jobgate.gate.stats import BOUNDS, SIZES
from jobgate.web.exchange import Response

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

    from jobgate.gate import Gate
    from jobgate.gate.stats import Histogram

__all__ = ["Metrics"]

_COUNTERS = {
    "accepted": "Commands offered to the queue, refused ones included",
    "succeeded": "Commands that ended with a reply",
    "failed": "Commands that ended with a problem after having been let in",
    "shed": "Commands refused at the door",
    "cancelled": "Commands whose callers left, or that were purged",
    "retried": "Starts beyond a command's first",
    "declined": "Times a worker would not have a command",
}


class Metrics(Collector):
    """
    Reads the gate's counters when they are asked for.

    Args:
        gate: Whose.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def render(self, accept: str) -> Response:
        """All metrics, in the format that `Accept` asks for."""
        encode, content_type = choose_encoder(accept)
        return Response(200, content_type, encode(self._registry))

    def describe(self) -> list[Metric]:
        """Nothing at registration: the queues are not known for good then."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric, read now."""
        roads = list(self._gate.dispatcher)
        for name, about in _COUNTERS.items():
            counter = CounterMetricFamily(f"jobgate_commands_{name}", about, labels=["queue"])
            for road in roads:
                counter.add_metric([road.config.name], getattr(road.stats, name))
            yield counter
        stray = CounterMetricFamily(
            "jobgate_stray_replies", "Replies to no command in flight, dropped", labels=["queue"]
        )
        waiting = GaugeMetricFamily(
            "jobgate_commands_waiting", "Commands in the queue", labels=["queue"]
        )
        running = GaugeMetricFamily(
            "jobgate_commands_running", "Commands with a worker", labels=["queue"]
        )
        size = GaugeMetricFamily(
            "jobgate_queue_bytes", "Bodies that wait, in bytes", labels=["queue"]
        )
        workers = GaugeMetricFamily(
            "jobgate_workers", "Workers by state", labels=["queue", "state"]
        )
        restarts = CounterMetricFamily(
            "jobgate_worker_restarts", "Workers started in place of another", labels=["queue"]
        )
        causes = CounterMetricFamily(
            "jobgate_worker_restarts_by_cause",
            "Workers started in place of another, by why",
            labels=["queue", "cause"],
        )
        wanted = GaugeMetricFamily(
            "jobgate_workers_wanted", "Workers that there are to be now", labels=["queue"]
        )
        busy = CounterMetricFamily(
            "jobgate_worker_busy_seconds",
            "Seconds in which workers had commands in hand: its rate is their utilisation",
            labels=["queue", "worker"],
        )
        done = CounterMetricFamily(
            "jobgate_worker_commands", "Commands that workers answered", labels=["queue", "worker"]
        )
        waited = HistogramMetricFamily(
            "jobgate_queue_seconds", "How long commands waited before they began", labels=["queue"]
        )
        ran = HistogramMetricFamily(
            "jobgate_run_seconds", "How long commands ran", labels=["queue"]
        )
        together = HistogramMetricFamily(
            "jobgate_batch_size", "How many commands were run together", labels=["queue"]
        )
        most = GaugeMetricFamily(
            "jobgate_batch_limit", "How many commands may go together now", labels=["queue"]
        )
        linger = GaugeMetricFamily(
            "jobgate_batch_linger_seconds",
            "How long a command waits for company now; infinite until the batch is full",
            labels=["queue"],
        )
        for road in roads:
            name = road.config.name
            supervisor = self._gate.supervisor(name)
            stray.add_metric([name], road.stats.stray_replies)
            tally = self._gate.jobs.backlogs[name].tally
            waiting.add_metric([name], tally.waiting)
            running.add_metric([name], tally.running)
            size.add_metric([name], road.bytes_waiting)
            states = [worker.state.value for worker in supervisor.workers]
            for state in ("starting", "ready", "draining", "ending"):
                workers.add_metric([name, state], states.count(state))
            workers.add_metric([name, "backing-off"], len(supervisor.backing_off))
            restarts.add_metric([name], supervisor.causes.total())
            for cause, count in supervisor.causes.items():
                causes.add_metric([name, cause], count)
            wanted.add_metric([name], supervisor.wanted)
            for post in supervisor.places:
                answered, seconds = post.served
                done.add_metric([name, post.name], answered)
                busy.add_metric([name, post.name], seconds)
            _add(waited, name, road.stats.waited)
            _add(ran, name, road.stats.ran)
            if road.batching is not None:
                _add(together, name, road.stats.together, SIZES)
                most.add_metric([name], road.batching.size)
                linger.add_metric([name], road.batching.linger)
        yield CounterMetricFamily(
            "jobgate_store_writes",
            "Steps stored for jobs, graphs and leases",
            value=self._gate.jobs.journal.writes,
        )
        yield CounterMetricFamily(
            "jobgate_stale_replies",
            "Replies of pullers that came too late, dropped",
            value=self._gate.leases.stale,
        )
        yield from (stray, waiting, running, size, workers, wanted, restarts, causes)
        yield from (busy, done, waited, ran)
        yield from (together, most, linger)


def _add(
    family: HistogramMetricFamily,
    queue: str,
    histogram: Histogram,
    bounds: tuple[float, ...] = BOUNDS,
) -> None:
    buckets: list[tuple[str, float]] = []
    seen = 0
    for bound, count in zip((*bounds, float("inf")), histogram.counts, strict=True):
        seen += count
        buckets.append(("+Inf" if bound == float("inf") else str(float(bound)), seen))
    family.add_metric([queue], buckets, sum_value=histogram.total)
