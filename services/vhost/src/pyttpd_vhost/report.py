"""What a tenant's supervisor tells of itself: metrics, and a few lines that only our own tools read.

The lines ("# pyttpd ...", which every reader of metrics takes for a comment) hold what must not be a label, because it
changes all the time or comes from outside: each worker with its last host and path, and why an application doesn't run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pyttpd import metrics
from pyttpd.config.kinds import KINDS, Mount

from pyttpd_vhost.evictor import Counts
from pyttpd_vhost.execution import told
from pyttpd_vhost.execution.programs import Programs
from pyttpd_vhost.kinds.gateway.faults import REASONS
from pyttpd_vhost.nursery import Nursery
from pyttpd_vhost.policy import Notes, State
from pyttpd_vhost.processes import WorkerChild
from pyttpd_vhost.scoreboard import Scoreboard, printable
from pyttpd_vhost.stress import Stress

#: Workers that are told of one by one; the busiest pool is still a screen for people.
MAX_TOLD = 1024


@dataclass(frozen=True, slots=True)
class Pool:
    """What there is to tell, gathered where it stands. `limits`: how often max_workers was reached."""

    name: str
    mode: str
    mounts: tuple[Mount, ...]
    workers: list[WorkerChild]
    board: Scoreboard
    nursery: Nursery
    counts: Counts
    notes: Notes
    stress: Stress
    lost: tuple[tuple[str, int], ...]
    programs: Programs
    waiting: int
    limits: int
    failing: bool
    now: float
    born: float


def collect(pool: Pool) -> Iterable[metrics.Metric]:
    """Yield the tenant's families; every label's values are few and our own."""
    row = pool.board.total([(worker.slot, worker.number) for worker in pool.workers])
    counter, gauge = metrics.CounterMetricFamily, metrics.GaugeMetricFamily
    requests = counter("pyttpd_vhost_requests", "Requests answered.", labels=["vhost", "code"])
    for code, count in zip(("1xx", "2xx", "3xx", "4xx", "5xx"), row[1:6], strict=True):
        requests.add_metric([pool.name, code], count)
    yield requests
    nursery, counts = pool.nursery, pool.counts
    for family, title, text, value in (
        (counter, "errors", "Faults of the application.", row.errors),
        (counter, "bytes_sent", "Bytes sent to clients.", row.bytes_sent),
        (counter, "slow_requests", "Requests that took longer than slow_request.", row.slow),
        (counter, "request_timeouts", "Requests ended by request_timeout.", row.timed_out),
        (counter, "connections_passed", "Connections handed to a sibling.", row.passed),
        (counter, "busy_seconds", "Time that threads have spent on requests.", row.busy_ms / 1000),
        (gauge, "connections", "Connections that workers have open.", row.connections),
        (gauge, "stress", "1 while clients are waited for less patiently.", int(pool.stress.on)),
        (counter, "stress_episodes", "Times that this has begun.", pool.stress.episodes),
        (gauge, "threads", "Threads that serve.", row.threads),
        (gauge, "busy_threads", "Threads that are serving a request.", row.busy_threads),
        (gauge, "worker_memory_bytes", "What workers have got for themselves.", _memory(pool)),
        (gauge, "pool_size", "Workers that there should be.", pool.notes.size),
        (gauge, "leaving_seconds", "How long a worker has been leaving; 0: none leaves.", _leaving(pool)),
        (gauge, "application_failed", "1 while the application does not run.", int(_broken(pool))),
        (counter, "worker_starts", "Workers that have begun to serve.", nursery.starts),
        (counter, "prototype_starts", "Times that the application was loaded, or tried to.", nursery.loads),
        (counter, "forks_refused", "Forks that found no process left.", nursery.refused),
        (counter, "limit_reached", "Episodes in which max_workers were too few.", pool.limits),
        (counter, "retirements_postponed", "Retirements put off by load.", counts.postponed),
        (counter, "retirements_overruled", "Retirements under load, at hard_age.", counts.overruled),
        (counter, "fork_bombs", "Times that all processes had to be killed.", counts.bombs),
        (counter, "strays_killed", "Processes that workers had left behind.", counts.strays),
    ):
        metric = family(f"pyttpd_vhost_{title}", text, labels=["vhost"])
        metric.add_metric([pool.name], value)
        yield metric
    yield from _labelled(pool)
    yield from told.collect(pool.name, pool.programs)
    spawn = metrics.HistogramMetricFamily(
        "pyttpd_vhost_worker_spawn_seconds", "From the order to the worker that serves.", labels=["vhost"]
    )
    spawn.add_metric([pool.name], nursery.spawn_time.cumulative(), nursery.spawn_time.sum)
    yield spawn


def _leaving(pool: Pool) -> float:
    return max(
        [pool.now - worker.left for worker in pool.workers if worker.state is State.LEAVING], default=0.0
    )


def _labelled(pool: Pool) -> Iterator[metrics.Metric]:
    counter, gauge = metrics.CounterMetricFamily, metrics.GaugeMetricFamily
    workers = gauge("pyttpd_vhost_workers", "Workers by state.", labels=["vhost", "state"])
    for state in State:
        workers.add_metric([pool.name, state.value], sum(worker.state is state for worker in pool.workers))
    yield workers
    for title, text, counts in (
        ("worker_exits", "Workers that ended.", pool.counts.exits),
        ("worker_signals", "Signals sent to workers that had to go.", pool.counts.signals),
    ):
        family = counter(
            f"pyttpd_vhost_{title}", text, labels=["vhost", "reason" if "exits" in title else "signal"]
        )
        for label, count in sorted(counts.items()):
            family.add_metric([pool.name, label], count)
        yield family
    yield _faults(pool)
    lost = counter("pyttpd_vhost_log_lines_lost", "Lines that are in no log.", labels=["vhost", "log"])
    for log, count in pool.lost:
        lost.add_metric([pool.name, log], count)
    yield lost
    oldest = gauge("pyttpd_vhost_oldest_seconds", "Age of the oldest process.", labels=["vhost", "process"])
    prototype = pool.nursery.prototype
    for process, born in (
        ("supervisor", pool.born),
        ("prototype", prototype.born if prototype is not None else pool.now),
        ("worker", min([worker.born for worker in pool.workers], default=pool.now)),
    ):
        oldest.add_metric([pool.name, process], max(0.0, pool.now - born))
    yield oldest


def _faults(pool: Pool) -> metrics.Metric:
    """Return the faults of applications in other processes. A mount of another kind has none to tell of."""
    family = metrics.CounterMetricFamily(
        "pyttpd_vhost_backend_errors",
        "Requests whose application, in another process, failed.",
        labels=["vhost", "mount", "reason"],
    )
    cells = pool.board.cells([(worker.slot, worker.number) for worker in pool.workers])
    for number, mount in enumerate(pool.mounts):
        if KINDS[mount.kind].elsewhere:
            for index, reason in enumerate(REASONS, number * len(REASONS)):
                family.add_metric([pool.name, mount.path, reason], cells[index])
    return family


def _memory(pool: Pool) -> int:
    return sum(worker.memory for worker in pool.workers)


def _broken(pool: Pool) -> bool:
    return pool.failing or pool.nursery.crash_loop()


def notes(pool: Pool) -> Iterator[str]:
    """Yield the lines for our own tools: "pyttpd WHAT JSON", printable ASCII."""
    prototype, failure = pool.nursery.prototype, pool.nursery.failure
    yield "pyttpd pool " + json.dumps(
        {
            "mode": pool.mode,
            "size": pool.notes.size,
            "waiting": pool.waiting,
            "failing": pool.failing,
            "prototype": "none" if prototype is None else "ready" if prototype.ready else "loading",
            "loaded_in": round(prototype.loaded_in, 3) if prototype is not None else 0.0,
        }
    )
    if failure is not None:
        yield "pyttpd failure " + json.dumps(
            {
                "reason": failure.reason,
                "traceback": list(failure.detail),
                "ago": round(pool.now - failure.at, 1),
                "retry_in": round(pool.nursery.retry_in(pool.now), 1),
            }
        )
    yield from told.notes(pool.programs, pool.now)
    for worker in pool.workers[:MAX_TOLD]:
        row = pool.board.read(worker.slot, worker.number)
        yield "pyttpd worker " + json.dumps(
            {
                "number": worker.number,
                "pid": worker.pid,
                "state": worker.state.value,
                "due": worker.due.value if worker.due is not None else "",
                "generation": row.generation,
                "age": round(pool.now - worker.born, 1),
                "requests": row.requests,
                "connections": row.connections,
                "threads": row.threads,
                "busy_threads": row.busy_threads,
                "busy": round(worker.busy, 2),
                "memory": worker.memory,
                "cpu": round(worker.cpu, 2),
                "host": printable(row.last_host),
                "path": printable(row.last_path),
            }
        )
