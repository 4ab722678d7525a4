"""What is told of programs and application processes: metrics, and lines for our own tools (report.py)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Final

from pyttpd import metrics

from pyttpd_vhost.execution.manager import Process
from pyttpd_vhost.execution.programs import Programs
from pyttpd_vhost.policy import State

#: Processes that are told of one by one: beside the workers' lines our tools read no more than these.
MAX_TOLD: Final = 512
#: Bytes of why a pool fails.
MAX_REASON: Final = 200


def collect(vhost: str, programs: Programs) -> Iterator[metrics.Metric]:
    """Yield the families; every label's value is the configuration's, or one of a few words."""
    counter, gauge = metrics.CounterMetricFamily, metrics.GaugeMetricFamily
    tally = programs.tally
    if tally is None:
        return
    for family, title, text, value in (
        (gauge, "programs", "Programs that run, application processes among them.", tally["running"]),
        (gauge, "programs_waiting", "Programs that wait to be started.", tally["waiting"]),
        (counter, "program_starts", "Programs started.", tally["started"]),
        (
            counter,
            "exec_service_faults",
            "Requests for a program that were wrong in themselves.",
            tally["faults"],
        ),
        (counter, "exec_service_starts", "Times that the exec service was started.", programs.starts),
    ):
        metric = family(f"pyttpd_vhost_{title}", text, labels=["vhost"])
        metric.add_metric([vhost], value)
        yield metric
    refused = counter(
        "pyttpd_vhost_program_refusals", "Programs that were not started.", labels=["vhost", "reason"]
    )
    for reason, count in tally.refusals().items():
        refused.add_metric([vhost, reason], count)
    yield refused
    yield from _of_pools(vhost, programs)


def _of_pools(vhost: str, programs: Programs) -> Iterator[metrics.Metric]:
    counter, gauge = metrics.CounterMetricFamily, metrics.GaugeMetricFamily
    pools = programs.pools
    if not pools:
        return
    labels = ["vhost", "mount"]
    processes = gauge("pyttpd_vhost_processes", "Application processes by state.", labels=[*labels, "state"])
    exits = counter(
        "pyttpd_vhost_process_exits", "Application processes that ended.", labels=[*labels, "reason"]
    )
    for pool in pools:
        mount = pool.application.mount
        for state in State:
            there = sum(process.state is state for process in pool.processes.values())
            processes.add_metric([vhost, mount, state.value], there)
        for reason, count in sorted(pool.counts.exits.items()):
            exits.add_metric([vhost, mount, reason], count)
    yield processes
    yield exits
    for family, title, text, values in (
        (
            gauge,
            "process_pool_size",
            "Application processes that there should be.",
            [p.notes.size for p in pools],
        ),
        (gauge, "process_pool_failed", "1 while none of them stays.", [int(p.fails) for p in pools]),
        (gauge, "process_requests_active", "Requests that are with them now.", [p.active for p in pools]),
        (counter, "process_requests", "Requests that they were given.", [p.requests for p in pools]),
        (counter, "process_starts", "Application processes started.", [p.counts.starts for p in pools]),
        (counter, "process_kills", "Those that had to be killed.", [p.counts.killed for p in pools]),
        (counter, "process_limit_reached", "Episodes of too few.", [p.counts.limits_reached for p in pools]),
        (
            gauge,
            "process_memory_bytes",
            "Their resident memory.",
            [_memory(p.processes.values()) for p in pools],
        ),
    ):
        metric = family(f"pyttpd_vhost_{title}", text, labels=labels)
        for pool, value in zip(pools, values, strict=True):
            metric.add_metric([vhost, pool.application.mount], value)
        yield metric


def _memory(processes: Iterable[Process]) -> int:
    return sum(process.memory for process in processes)


def notes(programs: Programs, now: float) -> Iterator[str]:
    """Yield a line for each pool, and one for each process: "pyttpd WHAT JSON", printable ASCII."""
    for pool in programs.pools:
        yield "pyttpd mount " + json.dumps(
            {
                "mount": pool.application.mount,
                "kind": pool.application.kind,
                "mode": pool.application.settings.mode,
                "size": pool.notes.size,
                "serving": pool.serving,
                "active": pool.active,
                "failing": pool.fails,
                "reason": pool.failure[:MAX_REASON],
                "retry_in": round(pool.retry_in(now), 1),
            }
        )
    told = 0
    for pool in programs.pools:
        for process in pool.processes.values():
            if (told := told + 1) > MAX_TOLD:
                return
            yield "pyttpd process " + json.dumps(
                {
                    "mount": pool.application.mount,
                    "kind": pool.application.kind,
                    "number": process.number,
                    "pid": process.pid,
                    "state": process.state.value,
                    "due": process.due.value if process.due is not None else "",
                    "age": round(now - process.born, 1),
                    "requests": process.requests,
                    "memory": process.memory,
                    "cpu": round(process.cpu, 2),
                }
            )
