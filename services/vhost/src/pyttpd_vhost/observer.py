"""What the supervisor knows of its workers: their rows, and what the kernel says.

A row is the worker's word (scoreboard.py): requests, connections, how busy. It can only harm the tenant: a worker that
says too little lives as long as its age allows, one that says too much is replaced sooner. CPU time, and memory where
/proc allows it, are the kernel's word, read from outside.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyttpd_vhost.processes import WorkerChild, cpu_seconds, resident
from pyttpd_vhost.scoreboard import MAX_NUMBER, Scoreboard

#: How often (s) a worker's memory is looked at: a file of /proc is read for it.
MEMORY_INTERVAL = 1.0
#: Shorter spans (s) say nothing of how busy somebody is: a worker writes its row every 50 ms.
LEAST_SPAN = 0.08
#: Of what was measured last and what was known before, the share that the last has.
SMOOTHING = 0.5


class Observer:
    """Fills in the policy's table."""

    def __init__(self, board: Scoreboard) -> None:
        self._board = board

    def look(self, workers: Iterable[WorkerChild], max_threads: int, now: float) -> bool:
        """Look at all `workers`; say whether any had something to do since the last time."""
        return bool(sum([self._look(worker, max_threads, now) for worker in workers if worker.pid]))

    def _look(self, worker: WorkerChild, max_threads: int, now: float) -> bool:
        row = self._board.read(worker.slot, worker.number)
        # Counters of an honest worker never shrink; a row without a writer yet says 0.
        active = row.requests != worker.requests or bool(row.busy_threads)
        worker.requests = max(worker.requests, row.requests)
        worker.connections = row.connections
        if active:
            worker.active = now
        if now - worker.measured >= MEMORY_INTERVAL:
            worker.measured = now
            self._measure(worker, row.memory)
        span = now - worker.counted
        if span >= LEAST_SPAN:
            worker.cpu = max(worker.cpu, cpu_seconds(worker.pid))
            by_row = (row.busy_ms - worker.busy_ms) / 1000 / span / max_threads
            by_kernel = (worker.cpu - worker.cpu_before) / span
            busy = min(1.0, max(0.0, by_row, by_kernel))
            worker.busy += SMOOTHING * (busy - worker.busy)
            worker.busy_ms, worker.cpu_before, worker.counted = row.busy_ms, worker.cpu, now
        return active

    def _measure(self, worker: WorkerChild, said: int) -> None:
        """Find out what the worker has got since it was forked; what it shares with the prototype isn't its own.

        Pages that it has only changed stay out, too: they are as many before as after, and at most the prototype's.
        Where /proc shows nobody else (plain mode as root, hidepid), the worker's own reading has to do: an honest leak
        is found by it, and for a dishonest one there is the container's memory limit.
        """
        has = resident(worker.pid)
        worker.memory = min(max(0, has - worker.at_birth), MAX_NUMBER) if has else said
