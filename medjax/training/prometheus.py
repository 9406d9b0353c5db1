"""RUN/metrics.prom: the last numbers of a run as Prometheus reads them, for node_exporter's textfile collector.

One line a number: `medjax_metric{run="demo",name="loss"} 4.2`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from medjax import files


def write(
    folder: Path, line: Mapping[str, Any], seconds: Mapping[str, float], heartbeats: Sequence[Mapping[str, Any]]
) -> None:
    """The file, whole. `line` is the last one of metrics.jsonl, `seconds` are those of goodput.json."""
    run = folder.absolute().name
    steps = CounterMetricFamily('medjax_steps', 'Steps that are done.', labels=['run'])
    steps.add_metric([run], line['step'])
    metrics = GaugeMetricFamily('medjax_metric', 'A number of the last line of metrics.jsonl.', labels=['run', 'name'])
    for name, value in line.items():
        if name != 'step' and value is not None:
            metrics.add_metric([run, name], value)
    spent = CounterMetricFamily('medjax_seconds', 'Time of the run by what it did.', labels=['run', 'kind'])
    for kind, value in seconds.items():
        spent.add_metric([run, kind], value)
    labels = ['run', 'process', 'host']
    at = GaugeMetricFamily('medjax_heartbeat_time', 'Last heartbeat, seconds since 1970.', labels=labels)
    done = GaugeMetricFamily('medjax_heartbeat_step', 'Step that a process has finished.', labels=labels)
    for beat in heartbeats:
        place = [run, str(beat['process']), beat['host']]
        at.add_metric(place, beat['time'])
        done.add_metric(place, beat['step'])
    registry = CollectorRegistry()
    registry.register(_Families((steps, metrics, spent, at, done)))
    files.write_text(folder / 'metrics.prom', generate_latest(registry).decode())


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self.families = tuple(families)

    def collect(self) -> Iterable[Metric]:
        return self.families
