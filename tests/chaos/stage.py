"""The chaos test's stage: a tree, clients, what is done to it, and who may lose what.

Whoever is killed is stopped first, for the few milliseconds that it takes to see which clients' connections it is the
*last* to hold: those may be lost with it, and nothing else may. The kernel says so: inodes of /proc/PID/fd, and
/proc/net/tcp. (A connection that is in flight between two processes at that moment counts as held by its sender alone.)
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from chaos import clients
from chaos.clients import Failure, Summary
from chaos.schedule import KEEPERS, ROLES, Action, Deed, Event
from support.leaks import descendants, state
from support.tree import Tree

#: After an event the tree is whole again within this (s); what is stopped is found and killed within that.
WHOLE_WITHIN = 40.0
STOPPED_WITHIN = 30.0
#: A keeper that is stopped dies with its role, which goes on until then: what that has held meanwhile may be lost, and
#: what came to it so shortly (s) before that nobody has looked.
LAST_MOMENT = 0.5
#: Names that programs give themselves, and what they are called here.
NAMES = {"pyttpd-init": "init", "pyttpd-master": "master", "pyttpd-umaster": "umaster", "l:http": "listener"}
HARMLESS = ("reset", "closed", "closed-idle")


class NotWhole(Exception):
    """The tree hasn't come back after an event."""


@dataclass(slots=True)
class Done:
    """A deed that was done at `at`, to `pid`; `held`: the clients' ports that may be lost, and how each ended."""

    deed: Deed
    at: float
    pid: int
    held: set[int] = field(default_factory=set)
    until: float = 0.0
    whole_after: float = 0.0
    tenant: str = ""
    command: subprocess.Popen[bytes] | None = None
    lost: list[Failure] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


class Processes:
    """A moment's picture of a tree's processes: by what they are, each with its parent."""

    def __init__(self, runner: int) -> None:
        self.parents: dict[int, int] = {}
        self.names: dict[int, str] = {}
        self.by_kind: dict[str, list[int]] = {}
        pids = list(descendants(runner))
        for pid in pids:
            with contextlib.suppress(OSError):
                name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
                self.parents[pid], self.names[pid] = int(rest.split()[1]), name
        for pid in pids:
            if pid in self.names:
                self.by_kind.setdefault(self._kind(pid, runner), []).append(pid)

    def _kind(self, pid: int, runner: int) -> str:
        name, parent = self.names[pid], self.parents[pid]
        if name in NAMES or name.startswith("v:"):
            role = NAMES.get(name, "supervisor")
            if parent == runner:
                return f"keeper {role}"
            # Once in its own uid: who has just been forked to become init's metrics child, say, is nobody yet.
            return role if self.parents.get(parent) == runner else "passing"
        if name == "init-metrics":
            return name
        if name.startswith("p:") and self.names.get(parent, "").startswith("v:"):
            return "prototype"
        if name.startswith("w") and ":" in name:
            return "worker"
        return "other"

    def below(self, pid: int) -> list[int]:
        found = [pid]
        for one in found:
            found += [child for child, parent in self.parents.items() if parent == one]
        return found


def ports_of(server_port: int) -> dict[str, int]:
    """Return the clients' ports of the connections that the server holds, by the inode of its socket."""
    found = {}
    with open("/proc/net/tcp", encoding="ascii") as table:
        next(table)
        for line in table:
            fields = line.split()
            if int(fields[1].partition(":")[2], 16) == server_port and fields[9] != "0":
                found[fields[9]] = int(fields[2].partition(":")[2], 16)
    return found


def inodes(pids: Iterable[int]) -> set[str]:
    """Return the inodes of all sockets that these processes have open."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    target = os.readlink(f"/proc/{pid}/fd/{name}")
                    if target.startswith("socket:["):
                        found.add(target[8:-1])
    return found


class Stage:
    """See the module's text. Owns neither `tree` nor what `clients` run against."""

    def __init__(self, tree: Tree, hosts: tuple[str, ...], tenants: int) -> None:
        self.tree = tree
        self._hosts = hosts
        self._tenants = tenants
        self.done: list[Done] = []
        self._asked: set[int] = set()
        self._whole = (
            len(ROLES) + 1 + tenants - 1
        )  # the metrics' listener has a health file, too; supervisors many
        self.wait_whole()
        self.before = self.descriptors()

    # ---- looking ----

    def processes(self) -> Processes:
        return Processes(self.tree.process.pid)

    def is_whole(self) -> bool:
        """Say whether every process is there and every role is ready, by its health file; and clients are served."""
        self.missing = self._missing()
        return not self.missing

    def _missing(self) -> str:
        found = self.processes().by_kind
        counts = {kind: len(pids) for kind, pids in found.items()}
        wanted = {"init": 1, "master": 1, "umaster": 1, "listener": 1, "init-metrics": 1}
        for kind, count in {**wanted, "supervisor": self._tenants, "prototype": self._tenants}.items():
            if counts.get(kind) != count:
                return f"{counts.get(kind, 0)} {kind}, {count} expected"
        folder = self.tree.folder / "run/health"
        states = {path.parent.name: path.read_text().strip() for path in folder.glob("*/state")}
        if len(states) != self._whole or set(states.values()) != {"ready"}:
            return f"ready: {states}"
        answers = {host: self.tree.get(host, "/pattern/0/1").status for host in self._hosts}
        return "" if set(answers.values()) == {200} else f"answers: {answers}"

    def _looks_whole(self) -> bool:
        try:
            return self.is_whole()
        except (OSError, http.client.HTTPException) as error:
            self.missing = repr(error)
            return False

    def wait_whole(self) -> None:
        self.tree.wait_for(self.is_whole, WHOLE_WITHIN)

    def last_held(self, victims: list[int]) -> set[int]:
        """Return the clients' ports whose connections `victims`, and nobody else of the tree, hold."""
        found = self.processes()
        mine = inodes(victims)
        # What a worker has taken is its, although the listener's copy may not be closed yet.
        taken = any(name.startswith("w") for pid, name in found.names.items() if pid in victims)
        others = inodes(
            pid
            for pid, name in found.names.items()
            if pid not in victims and (not taken or name.startswith("w"))
        )
        return {port for inode, port in ports_of(self.tree.port).items() if inode in mine - others}

    def descriptors(self) -> dict[str, int]:
        """Return how many descriptors runner and keepers have: what they lose never comes back to anybody."""
        found = self.processes()
        counts = {"runner": len(os.listdir(f"/proc/{self.tree.process.pid}/fd"))}
        for kind in KEEPERS:
            for pid in found.by_kind.get(kind, ()):
                with contextlib.suppress(OSError):
                    counts[f"{kind} {found.names[pid]}"] = len(os.listdir(f"/proc/{pid}/fd"))
        return counts

    def zombies(self) -> list[str]:
        """Return processes below the runner that have ended and that nobody has reaped."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
                    if rest.split()[0] == "Z" and self._is_ours(int(rest.split()[1])):
                        found.append(f"{entry.name} {name}")
        return found

    def _is_ours(self, pid: int) -> bool:
        return pid == self.tree.process.pid or pid in set(descendants(self.tree.process.pid))

    # ---- doing ----

    def do(self, event: Event) -> list[Done]:
        """Do what `event` says, and wait until the tree is whole again."""
        time.sleep(event.pause)
        done = [one for deed in event.deeds if (one := self._do(deed)) is not None]
        self.done += done
        began = time.monotonic()
        self._await_ends(done)
        while not self._looks_whole():
            if time.monotonic() - began > WHOLE_WITHIN:
                raise NotWhole(f"after {event}: {self.missing}")
            time.sleep(0.02)
        for one in done:
            one.whole_after = time.monotonic() - began
        return done

    def _do(self, deed: Deed) -> Done | None:
        if deed.action is Action.RELOAD:
            return self._reload(deed)
        found = self.processes()
        kind = f"keeper {deed.target}" if deed.action is Action.REPLACE else deed.target
        candidates = sorted(found.by_kind.get(kind, ()))
        if deed.action in (Action.TERM, Action.REPLACE):
            # Who is asked a second time leaves at once.
            candidates = [pid for pid in candidates if pid not in self._asked]
        if not candidates:
            return None
        pid = candidates[deed.pick % len(candidates)]
        family = found.below(pid) if kind in KEEPERS else [pid]
        with contextlib.suppress(ProcessLookupError):
            match deed.action:
                case Action.TERM:
                    os.kill(pid, signal.SIGTERM)
                    self._asked.add(pid)
                    return Done(deed, time.monotonic(), pid)
                case Action.REPLACE:
                    role = [one for one in found.by_kind[deed.target] if found.parents[one] == pid]
                    role = [one for one in role if one not in self._asked]
                    if not role:
                        return None
                    os.kill(pid, signal.SIGUSR2)
                    self._asked.add(role[-1])
                    return Done(deed, time.monotonic(), role[-1])
                case Action.STOP:
                    os.kill(pid, signal.SIGSTOP)
                    held = self.last_held([pid]) if kind not in KEEPERS else set()
                    return Done(deed, time.monotonic(), pid, held, tenant=found.names[pid].partition(":")[2])
                case Action.KILL:
                    for one in family:
                        os.kill(one, signal.SIGSTOP)
                    held = self.last_held(family)
                    at = time.monotonic()
                    with contextlib.suppress(
                        ProcessLookupError
                    ):  # on a busy machine somebody has found it stopped
                        os.kill(pid, signal.SIGKILL)
                    return Done(deed, at, pid, held)
        return None

    def _reload(self, deed: Deed) -> Done:
        """Change the configuration and put it in force, or start one tenant's processes anew."""
        tenants = [host.partition(".")[0] for host in self._hosts]
        if deed.target == "tree":
            file = self.tree.folder / "pyttpd.toml"
            text, count = re.subn(
                r"max_requests = (\d+)\n",
                lambda found: f"max_requests = {int(found[1]) ^ (1 + deed.pick % 3)}\n",
                file.read_text(),
            )
            assert count, "nothing to change"
            file.write_text(text)
        return Done(deed, time.monotonic(), 0, command=self._ask_to_reload(deed, tenants))

    def _ask_to_reload(self, deed: Deed, tenants: list[str]) -> subprocess.Popen[bytes]:
        what = [] if deed.target == "tree" else [tenants[deed.pick % len(tenants)]]
        command = [sys.executable, "-I", "-m", "pyttpd_ctl", "reload", *what, "--runtime-dir"]
        return subprocess.Popen(
            [*command, str(self.tree.folder / "run")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def _has_reloaded(self, one: Done, alone: bool) -> bool:
        """Say whether the operator's command has done it; where master may have been away, it is asked again."""
        assert one.command is not None
        if one.command.poll() is None:
            return False
        assert one.command.stdout is not None
        with one.command.stdout as said:
            text = said.read().decode(errors="replace")
        if one.command.returncode and not alone:
            tenants = [host.partition(".")[0] for host in self._hosts]
            time.sleep(0.1)
            one.command = self._ask_to_reload(one.deed, tenants)
            return False
        if one.command.returncode:
            one.violations.append(f"status {one.command.returncode}: {text[-300:]!r}")
        return True

    def _await_ends(self, done: list[Done]) -> None:
        """Wait until all processes that something was done to are gone, as they have to be."""
        began = time.monotonic()
        waiting = list(done)
        while waiting:
            for one in list(waiting):
                if one.deed.action is Action.STOP and one.deed.target in KEEPERS:
                    family = self.processes().below(one.pid)
                    one.held |= self.last_held(family)
                within = STOPPED_WITHIN if one.deed.action is Action.STOP else WHOLE_WITHIN
                ended = (
                    state(one.pid) in "XZ" if one.command is None else self._has_reloaded(one, len(done) == 1)
                )
                if ended:
                    one.until = time.monotonic()
                elif time.monotonic() - began > within:
                    one.violations.append(f"process {one.pid} was still there after {within} s")
                    with contextlib.suppress(ProcessLookupError):
                        one.command.kill() if one.command is not None else os.kill(one.pid, signal.SIGKILL)
                else:
                    continue
                waiting.remove(one)
            time.sleep(0.01)

    # ---- judging ----

    def judge(self, failures: Iterable[Failure]) -> list[str]:
        """Give each failure to the deed that may have cost it; return those that none may have cost, in words."""
        violations = [f"{one.deed}: {text}" for one in self.done for text in one.violations]
        for failure in failures:
            excuse = next((one for one in self.done if excuses(one, failure)), None)
            if excuse is not None:
                excuse.lost.append(failure)
                continue
            before = [one for one in self.done if one.at <= failure.at][-3:]
            after = ", ".join(f"{failure.at - one.at:.2f} s after {one.deed} ({one.pid})" for one in before)
            violations.append(
                f"{failure.what} ({failure.detail}) of {failure.kind} to {failure.host}, port {failure.port}, "
                f"after {failure.served} answers, connection {failure.at - failure.opened:.2f} s old: {after}"
            )
        return violations


def excuses(one: Done, failure: Failure) -> bool:
    """Say whether `failure` is the end of a connection that only the victim of `one` had."""
    if failure.what not in HARMLESS or failure.at < one.at or failure.opened > max(one.at, one.until):
        return False
    if failure.port in one.held:
        return True
    # What a stopped keeper's role, which goes on, has at the moment when it dies with it, isn't known this exactly.
    last = one.deed.action is Action.STOP and abs(failure.at - one.until) < LAST_MOMENT
    match one.deed.target:
        case "keeper supervisor":
            return last and failure.host == f"{one.tenant}.localhost"
        case "keeper listener":
            return last and failure.served == 0 and one.until - failure.opened < LAST_MOMENT
    return False


class Crowd:
    """All client programs, while they run."""

    def __init__(self, port: int, seed: int, hosts: tuple[str, ...], uploads: tuple[str, ...]) -> None:
        self.failures: list[Failure] = []
        self.summaries: list[Summary] = []
        self._processes = [
            subprocess.Popen(
                [
                    *(sys.executable, "-I", clients.__file__, kind, str(port), str(seed)),
                    *(uploads if kind == "upload" else hosts),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for kind in clients.KINDS
        ]

    def end(self) -> None:
        """Let them finish what they ask for, and read what they have seen."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            assert process.stdout is not None
            for line in process.stdout:
                fields = json.loads(line)
                if "what" in fields:
                    self.failures.append(Failure(**fields))
                else:
                    self.summaries.append(Summary(**fields))
            process.stdout.close()
            process.wait()
        self.failures.sort(key=lambda failure: failure.at)


@contextlib.contextmanager
def crowd(port: int, seed: int, hosts: tuple[str, ...], uploads: tuple[str, ...]) -> Iterator[Crowd]:
    one = Crowd(port, seed, hosts, uploads)
    try:
        yield one
    finally:
        one.end()


# ---- the table ----


def table(done: list[Done], summaries: list[Summary], failures: list[Failure], retired: int) -> str:
    """Return what was done and what clients saw."""
    lines = [f"{'done':<28}{'times':>6}{'could be lost':>15}{'lost':>6}{'whole after, s (median, most)':>32}"]
    kinds = sorted({str(one.deed) for one in done})
    for kind in kinds:
        of_kind = [one for one in done if str(one.deed) == kind]
        waits = sorted(one.whole_after for one in of_kind)
        lines.append(
            f"{kind:<28}{len(of_kind):>6}{sum(len(one.held) for one in of_kind):>15}"
            f"{sum(len(one.lost) for one in of_kind):>6}{waits[len(waits) // 2]:>22.2f}{waits[-1]:>10.2f}"
        )
    totals = Counter(one.deed.action.value for one in done)
    lines.append("")
    lines.append("in all: " + ", ".join(f"{count} {name}" for name, count in sorted(totals.items())))
    lines.append(f"workers retired meanwhile: {retired}")
    lines.append("")
    what = ("refused", "reset", "closed", "closed-idle", "timeout", "wrong", "5xx")
    lines.append(
        f"{'clients':<12}{'answered':>10}{'connections':>13}{'longest, s':>12}"
        + "".join(f"{w:>13}" for w in what)
    )
    for summary in summaries:
        counts = Counter(failure.what for failure in failures if failure.kind == summary.kind)
        lines.append(
            f"{summary.kind:<12}{summary.answered:>10}{summary.connections:>13}{summary.longest:>12.2f}"
            + "".join(f"{counts[w]:>13}" for w in what)
        )
    return "\n".join(lines)
