"""Knows no dialect: ``GET /metrics``, counters for Prometheus. No text and no client is in them.

Values of labels are few: templates of paths, names of models that were served, tiers. What a
client that left had generated is not counted: engines tell counts with an answer's last event.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import chain
from operator import attrgetter
from typing import Final

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from localrun.engine.runner import RunnerStats
from localrun.server.models import LoadedModel, ModelProvider
from localrun.server.record import RequestRecord

_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_BUSY: Final = 429
# A second series of each counter, that says when it was made, is of no use to anybody here.
disable_created_metrics()  # type: ignore[no-untyped-call]  # it is the library's one without types


class Metrics:
    """What requests told at their end, and what is so just now.

    ``under_way`` are the records of requests that have not ended.
    """

    def __init__(self, models: ModelProvider, under_way: Mapping[str, RequestRecord]) -> None:
        self._models = models
        self._under_way = under_way
        self._registry = CollectorRegistry()
        self._requests = self._counter(
            "requests", "Requests answered, 499: left before.", "method", "route", "status"
        )
        self._refused = self._counter("queue_refusals", "Requests refused as too many wait.")
        self._generations = self._counter(
            "generations", "Requests for text, by how they ended.", "model", "finish_reason"
        )
        # By the names of ``Timings``.
        self._tokens = {
            name: self._counter(name, help_text, "model")
            for name, help_text in (
                ("prompt_tokens", "Tokens of prompts."),
                ("cached_tokens", "Of them those found computed."),
                ("generated_tokens", "Tokens generated."),
                ("drafted_tokens", "Tokens guessed ahead."),
                ("accepted_tokens", "Of them those that were right."),
            )
        }
        self._first = self._histogram("time_to_first_token", "Until the first text.", "model")
        self._total = self._histogram("request_duration", "Until the answer's end.", "route")

    def observe(self, record: RequestRecord) -> None:
        """Count a request that has ended."""
        self._requests.labels(record.method, record.route, str(record.status)).inc()
        if record.total_s is not None:
            self._total.labels(record.route).observe(record.total_s)
        if record.status == _BUSY or record.error == "BusyError":
            self._refused.inc()
        if record.served is None or record.finish is None:
            return
        self._generations.labels(record.served, record.finish.value).inc()
        if record.first_s is not None:
            self._first.labels(record.served).observe(record.first_s)
        for name, counter in self._tokens.items():
            counter.labels(record.served).inc(record.total(attrgetter(name)))

    async def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        stats = await self._models.stats()
        now = chain(
            _generations(self._under_way.values()), _held(self._models.loaded()), _read(stats)
        )
        return generate_latest(_Both(self._registry, now))

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"localrun_{name}", help_text, labels, registry=self._registry)

    def _histogram(self, name: str, help_text: str, *labels: str) -> Histogram:
        return Histogram(
            f"localrun_{name}_seconds",
            help_text,
            labels,
            registry=self._registry,
            buckets=_SECONDS,
        )


class _Both(Collector):
    def __init__(self, lasting: Collector, now: Iterable[Metric]) -> None:
        self._lasting = lasting
        self._now = now

    def collect(self) -> Iterable[Metric]:
        return chain(self._lasting.collect(), self._now)


def _generations(records: Collection[RequestRecord]) -> Iterable[Metric]:
    for stage, help_text in (
        ("running", "Requests for text under way."),
        ("waiting", "Requests for text that wait for a model, a turn or a prompt's beginning."),
    ):
        count = sum(record.stage == stage for record in records)
        yield GaugeMetricFamily(f"localrun_generations_{stage}", help_text, value=count)


def _held(loaded: Collection[LoadedModel]) -> Iterable[Metric]:
    yield GaugeMetricFamily("localrun_models_loaded", "Models ready.", value=len(loaded))
    held = GaugeMetricFamily(
        "localrun_model_bytes", "What a loaded model holds.", labels=("model", "tier")
    )
    for model in loaded:
        for tier, size in model.held.items():
            held.add_metric((model.id, tier), size)
    yield held


def _read(stats: Mapping[str, RunnerStats]) -> Iterable[Metric]:
    read = CounterMetricFamily(
        "localrun_read_bytes", "Weights read since a model's load.", labels=("model", "tier")
    )
    for name, told in stats.items():
        for tier, size in told.bytes_read.items():
            read.add_metric((name, tier), size)
    yield read


def add_routes(app: FastAPI, metrics: Metrics) -> None:
    @app.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics() -> Response:
        return Response(await metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)
