"""Metrics for Prometheus: sums over the database, looked up at each scrape, and the requests of this process.

Those of jobs and runs come out of the database, so every API process shows the same, a restart resets nothing, and no
engine has to be asked. Label values are from closed lists (states, methods, classes of status, templates of
routes): nothing that a client sends becomes one.

Requests are measured here. prometheus-fastapi-instrumentator 8.1 was measured instead and is worse: a request takes
1.4 to 1.6 times the CPU time (every route is matched again), any method that a client invents becomes a label, and a
stream counts only once it has ended.
"""

import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping

import structlog
from prometheus_client import CollectorRegistry, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import case, func, null, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.dependencies import Context
from service.api.event_feed import SSE
from service.db.models import DeletedSumRecord, JobRecord, Json, RunRecord, utc_now
from service.db.states import WORKING, State
from service.db.webhook_outbox import DeliveryStatus, WebhookDeliveryRecord
from service.paths import OTHER, route_of

MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Seconds; a handful, because each is a line for every route.
_BUCKETS = (0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0)
log = structlog.get_logger("service.api.metrics")


class Metrics:
    """Registry of all metrics of this API process.

    Args:
        context: whose database is read at each scrape.
        version: of Retort.
    """

    def __init__(self, context: Context, version: str) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Sums(context, version))
        ProcessCollector(namespace="retort", registry=self._registry)
        self.seconds = Histogram(
            "retort_http_response_seconds",
            "From a request to the first byte of its answer, by route template and class of status.",
            ("method", "route", "status"),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self.in_flight = Gauge(
            "retort_http_requests_in_flight", "Requests whose answer is not over yet.", registry=self._registry
        )
        self.streams = Gauge("retort_event_streams", "Open streams of server-sent events.", registry=self._registry)

    def text(self) -> bytes:
        """Text of all metrics in Prometheus's format, ``MEDIA_TYPE``."""
        return generate_latest(self._registry)


class MeasureRequests:
    """Middleware that counts requests and times their answers."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Time the request until its answer begins: how long a stream or a download takes is its reader's affair."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        metrics = self._metrics
        started_s = time.monotonic()
        is_answered = is_stream = False

        def observe(status: str) -> None:
            method = scope["method"] if scope["method"] in METHODS else OTHER
            metrics.seconds.labels(method, route_of(scope), status).observe(time.monotonic() - started_s)

        async def send_observed(message: Message) -> None:
            nonlocal is_answered, is_stream
            if message["type"] == "http.response.start" and not is_answered:
                is_answered = True
                observe(f"{message['status'] // 100}xx")
                is_stream = _is_stream(message)
                if is_stream:
                    metrics.streams.inc()
            await send(message)

        metrics.in_flight.inc()
        try:
            await self.app(scope, receive, send_observed)
        finally:
            metrics.in_flight.dec()
            if is_stream:
                metrics.streams.dec()
            if not is_answered:
                observe("none")


def _is_stream(start: Message) -> bool:
    return Headers(raw=start.get("headers", [])).get("content-type", "").startswith(SSE)


class _Sums(Collector):
    """Collector of sums over the database at the moment of a scrape; sums that never shrink are counters."""

    def __init__(self, context: Context, version: str) -> None:
        self._context = context
        self._version = version

    def describe(self) -> list[Metric]:
        """Describe nothing: at registration there may be no database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Collect every family; without a database only those that need none."""
        settings = self._context.settings
        info = GaugeMetricFamily("retort_build_info", "Always 1; its label is Retort's version.", labels=["version"])
        info.add_metric([self._version], 1)
        yield info
        yield from self._connections()
        free_bytes = shutil.disk_usage(settings.data_dir).free
        yield GaugeMetricFamily("retort_disk_free_bytes", "Free where the service keeps its data.", free_bytes)
        yield GaugeMetricFamily(
            "retort_disk_floor_bytes", "With less than this free, work is refused.", settings.disk_floor_bytes
        )
        yield self._readiness()
        try:
            families = list(self._from_database())
        except SQLAlchemyError as error:
            log.warning("the database cannot be read for /metrics", error=type(error).__name__)
            families = []
        yield GaugeMetricFamily("retort_database_up", "Whether the database could be read.", float(bool(families)))
        yield from families

    def _connections(self) -> Iterator[Metric]:
        table = self._context.connections
        yield GaugeMetricFamily("retort_http_connections", "Open connections of this process.", len(table))
        yield GaugeMetricFamily("retort_http_connections_max", "How many there may be.", table.total)
        text = "Connections closed for want of room: idle ones for a new one, and new ones at once."
        closed = CounterMetricFamily("retort_http_connections_closed", text, labels=["why"])
        closed.add_metric(["evicted"], table.evicted)
        closed.add_metric(["refused"], table.refused)
        yield closed

    def _readiness(self) -> Metric:
        """Readiness by part; a part of which nothing is known has no sample."""
        text = "Whether a part of readiness is ok: what /readyz says of it."
        family = GaugeMetricFamily("retort_ready", text, labels=["part"])
        for name, part in self._context.readiness.look().parts.items():
            if part.ok is not None:
                family.add_metric([name], float(part.ok))
        return family

    def _from_database(self) -> Iterator[Metric]:
        lease = self._context.records.lease()
        is_led = lease.silence(self._context.settings.heartbeat_max_age_s) is None
        yield GaugeMetricFamily("retort_engine_up", "Whether an engine leads and was heard of.", float(is_led))
        age = GaugeMetricFamily("retort_engine_heartbeat_age_seconds", "Since the leading engine was last heard of.")
        if lease.age_s is not None:
            age.add_metric([], lease.age_s)
        yield age
        with self._context.database.read() as session:
            yield from _queue(session)
            deleted = _deleted(session)
            yield from _runs(session, deleted)
            yield from _teacher(session, deleted)
            yield from _rates(session, is_led)
            yield _webhooks(session)


def _queue(session: Session) -> Iterator[Metric]:
    counts = session.execute(select(JobRecord.state, func.count()).group_by(JobRecord.state)).all()
    yield _by_state("retort_jobs", "Jobs by state.", {row[0]: row[1] for row in counts})
    # Ids rise with time, so the oldest is the first of the index over state and id.
    oldest = select(JobRecord.created_at).where(JobRecord.state == State.QUEUED).order_by(JobRecord.id).limit(1)
    posted = session.scalar(oldest)
    age_s = 0.0 if posted is None else max((utc_now() - posted).total_seconds(), 0.0)
    yield GaugeMetricFamily("retort_queue_age_seconds", "Since the oldest queued job was posted; 0 without.", age_s)


def _deleted(session: Session) -> Mapping[str, float]:
    """Sums over deleted jobs and runs by counter, without which the counters would fall."""
    return defaultdict(float, {row.name: row.value for row in session.scalars(select(DeletedSumRecord))})


def _runs(session: Session, deleted: Mapping[str, float]) -> Iterator[Metric]:
    sums = func.count(), func.sum(RunRecord.attempt), func.sum(RunRecord.lost_attempts)
    rows = session.execute(select(RunRecord.state, *sums).group_by(RunRecord.state)).all()
    yield _by_state("retort_runs", "Runs by state.", {state: count for state, count, _, _ in rows})
    aside = session.scalar(
        select(func.count()).where((RunRecord.state == State.PAUSED) & RunRecord.set_aside.is_not(null()))
    )
    yield GaugeMetricFamily("retort_runs_set_aside", "Paused runs that go on by themselves: the disk's fault.", aside)
    begun = sum(row[2] for row in rows) + deleted["run_attempts"]
    lost = sum(row[3] for row in rows) + deleted["run_attempts_lost"]
    yield CounterMetricFamily("retort_run_attempts", "Attempts at runs that were begun.", begun)
    yield CounterMetricFamily("retort_run_attempts_lost", "Attempts at runs whose process vanished.", lost)


def _teacher(session: Session, deleted: Mapping[str, float]) -> Iterator[Metric]:
    # As floats, which PostgreSQL's INTEGER is too small for; exact up to 2 to the power of 53.
    run, avoided = (JobRecord.teacher_forwards[name].as_float() for name in ("run", "avoided"))
    # Known once both caches of a job are complete, and never forgotten.
    complete = JobRecord.teacher_accuracy.is_not(None) | JobRecord.teacher_metrics.is_not(None)
    hits, misses = (func.count(case((complete & found, 1))) for found in (run == 0, run > 0))
    # Earlier versions have stored what a cache costs beyond what it spares as a negative number.
    sparing = case((avoided > 0, avoided), else_=0.0)
    sums = session.execute(select(func.sum(run), func.sum(sparing), hits, misses)).one()
    names = ("teacher_forwards", "teacher_forwards_avoided", "cache_hits", "cache_misses")
    ran, spared, found, missing = ((value or 0) + deleted[name] for name, value in zip(names, sums, strict=True))
    yield CounterMetricFamily("retort_teacher_forwards", "Pictures that were run through a teacher.", ran)
    # No counter: of a job whose caches are gone and inferred once more, it becomes less.
    text = "Forward passes that live teachers would have needed beyond those that were run."
    yield GaugeMetricFamily("retort_teacher_forwards_avoided", text, spared)
    yield CounterMetricFamily("retort_cache_hits", "Jobs whose caches were complete before them.", found)
    yield CounterMetricFamily("retort_cache_misses", "Jobs that had rows inferred for their caches.", missing)


def _rates(session: Session, is_led: bool) -> Iterator[Metric]:
    """Rates by their last report; 0 while no engine leads."""
    inferring = (JobRecord.state.in_(WORKING)) & (JobRecord.stage == "inference")
    reports = session.scalars(select(JobRecord.inference).where(inferring)).all() if is_led else []
    rate = sum(_number(inference, "rows_per_s") for inference in reports)
    yield GaugeMetricFamily("retort_inference_rows_per_second", "Pictures through teachers now, by last report.", rate)
    training = select(RunRecord.progress, RunRecord.metrics).where(RunRecord.state.in_(WORKING))
    pairs = session.execute(training).all() if is_led else []
    rate = sum(_number(progress or metrics, "images_per_s") for progress, metrics in pairs)
    yield GaugeMetricFamily("retort_training_rows_per_second", "Pictures through students now, by last report.", rate)


def _webhooks(session: Session) -> Metric:
    """Webhooks by status, 0 included. No counter: those of deleted jobs are gone."""
    text = "Webhooks of the jobs that there are, by how far their delivery is."
    family = GaugeMetricFamily("retort_webhooks", text, labels=["status"])
    row = WebhookDeliveryRecord
    counts = {found[0]: found[1] for found in session.execute(select(row.status, func.count()).group_by(row.status))}
    for status in DeliveryStatus:
        family.add_metric([status], counts.get(status, 0))
    return family


def _by_state(name: str, text: str, counts: Mapping[State, int]) -> Metric:
    """Gauge with a sample for every state, so that none appears out of nothing."""
    family = GaugeMetricFamily(name, text, labels=["state"])
    for state in State:
        family.add_metric([state], counts.get(state, 0))
    return family


def _number(report: Json | None, name: str) -> float:
    return float((report or {}).get(name) or 0.0)
