"""The chaos test's stage: a tree, clients, what is done to it, and who may lose what.

Whoever is killed is stopped first, for the few milliseconds that it takes to see which clients' connections it is the
*last* to hold (holdings.py): those may be lost with it, and nothing else may. What was in flight from it to somebody
else at that moment turns up there afterwards, and is no longer excused then.

A keeper that is stopped takes its role's processes with it when it is killed for that, a second later; until then those
go on. So they are looked at again and again, and the last look before their end counts, with what nobody had taken at
that look.
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
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos import clients
from chaos.clients import Failure, Summary
from chaos.holdings import Holdings, is_worker, wait_stopped
from chaos.schedule import KEEPERS, ROLES, Action, Deed, Event
from support.leaks import arguments, descendants, everybody, state
from support.tree import Tree

#: After an event the tree is whole again within this (s); what is stopped is found and killed within that.
WHOLE_WITHIN = 90.0
STOPPED_WITHIN = 60.0
#: This thread's nice value.
URGENT = -15
#: Names that programs give themselves, and what they are called here.
NAMES = {"pyttpd-init": "init", "pyttpd-master": "master", "pyttpd-umaster": "umaster", "l:http": "listener"}
#: Lines of /proc/PID/maps that are shared memory: memfd_create(2), anonymous MAP_SHARED, shmget(2).
_SHARED = re.compile(r"/memfd:|/dev/zero \(deleted\)|/SYSV")
HARMLESS = ("reset", "closed", "closed-idle")


class NotWhole(Exception):
    """The tree hasn't come back after an event."""


@dataclass(slots=True)
class Done:
    """A deed that was done at `at`, to `pid`.

    victims: who dies of it. held: the clients' ports that may be lost with them, by socket, as of the look; passing:
    those of them that may be somebody else's. until: when the victims' end was seen.
    """

    deed: Deed
    at: float
    pid: int
    victims: list[int] = field(default_factory=list)
    held: dict[int, int] = field(default_factory=dict)
    passing: set[int] = field(default_factory=set)
    look: Holdings | None = None
    until: float = 0.0
    whole_after: float = 0.0
    tenant: str = ""
    command: subprocess.Popen[bytes] | None = None
    lost: list[tuple[Failure, str]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    @property
    def lives_on(self) -> bool:
        """Say whether the victims go on for a while."""
        return self.deed.action is Action.STOP and self.deed.target in KEEPERS

    def see(self, look: Holdings, together: Collection[int]) -> None:
        """Note what `victims` may lose, when all of `together` die, by `look`."""
        mine = frozenset().union(*(look.has.get(pid, frozenset()) for pid in self.victims))
        held, passing = look.lost_with(together)
        self.held = {socket: port for socket, port in held.items() if socket in mine}
        self.passing = passing & self.held.keys()
        self.look = look

    def see_again(self, look: Holdings, together: Collection[int]) -> None:
        """Forget what somebody turns out to have who isn't one of those that die."""
        for socket in look.rescued(self.held, self.victims, together):
            del self.held[socket]
            self.passing.discard(socket)


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


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
        self.before = self.resources()

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

    def holdings(self, first: Iterable[int] = ()) -> Holdings:
        return Holdings.look(self.processes().names, self.tree.port, first)

    @contextlib.contextmanager
    def urgent(self) -> Iterator[None]:
        """Look at who is stopped before anybody else finds it stopped, whatever else this machine does."""
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, URGENT)
        try:
            yield
        finally:
            with contextlib.suppress(PermissionError):
                os.setpriority(os.PRIO_PROCESS, 0, 0)

    def resources(self) -> dict[str, int]:
        """Return what a tree has that nobody asks for anything: processes, descriptors, shared memory, by whose it is.

        Workers come and go: of theirs the one with the most counts, and a channel to each is nobody's leak. Nor are the
        files that one keeps open since it has served them.
        """
        found = self.processes()
        site = str(self.tree.folder / "site")
        counts: dict[str, int] = {}
        for kind, pids in found.by_kind.items():
            if kind != "worker":
                counts[f"processes: {kind}"] = len(pids)
        counts["network namespaces"] = len({_link(f"/proc/{pid}/ns/net") for pid in found.names})
        workers = [found.names[pid].partition(":")[2] for pid in found.by_kind.get("worker", ())]
        kinds = {pid: kind for kind, pids in found.by_kind.items() for pid in pids}
        for pid, name in {**found.names, self.tree.process.pid: "runner"}.items():
            kind, tenant = kinds.get(pid, ""), name.partition(":")[2]
            whose = f"{kind} {tenant or name}".strip()
            with contextlib.suppress(OSError):
                targets = [_link(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
                number = sum(not target.startswith(site) for target in targets)
                if kind == "supervisor":
                    number -= workers.count(tenant)
                elif kind == "umaster":
                    number -= len(workers)
                shared = len(_SHARED.findall(Path(f"/proc/{pid}/maps").read_text()))
                for what, count in ((f"descriptors: {whose}", number), (f"shared memory: {whose}", shared)):
                    counts[what] = max(count, counts.get(what, 0))
        return counts

    def grown(self) -> list[str]:
        """Return what there is more of than in the beginning, in words."""
        now = self.resources()
        return [
            f"{what} {self.before.get(what, 0)} -> {number}"
            for what, number in sorted(now.items())
            if number > self.before.get(what, 0)
        ]

    def stragglers(self) -> list[str]:
        """Return processes of this machine that still are the tree's, which has ended.

        With the last one its namespaces are gone: no descriptor (`resources`) and no mount (leaks.py) holds one.
        """
        folder = str(self.tree.folder)
        return [f"{pid} {words[:4]}" for pid in everybody() if folder in "\0".join(words := arguments(pid))]

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
        """Do what `event` says, at one moment, and wait until the tree is whole again."""
        time.sleep(event.pause)
        done = self._begin(event)
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

    def _begin(self, event: Event) -> list[Done]:
        """Stop all who are to die of it, look at what they have, and do it."""
        found = self.processes()
        done = [one for deed in event.deeds if (one := self._choose(deed, found)) is not None]
        for one in done:
            one.at = time.monotonic()
            if one.victims and not one.lives_on:
                one.victims = self._stop(one.pid, family=one.deed.target in KEEPERS)
        victims = [pid for one in done if not one.lives_on for pid in one.victims]
        wait_stopped(victims)
        look = self.holdings(victims) if victims else None
        for one in done:
            if look is not None and one.victims and not one.lives_on:
                one.see(look, victims)
            else:
                one.at = time.monotonic()
            # On a busy machine somebody may have found it stopped, and ended it.
            with contextlib.suppress(ProcessLookupError):
                match one.deed.action:
                    case Action.KILL:
                        os.kill(one.pid, signal.SIGKILL)
                    case Action.STOP:
                        os.kill(one.pid, signal.SIGSTOP)
                    case Action.TERM:
                        os.kill(one.pid, signal.SIGTERM)
                    case Action.REPLACE:
                        os.kill(found.parents[one.pid], signal.SIGUSR2)
                    case Action.RELOAD:
                        self._reload(one)
        return done

    def _stop(self, pid: int, *, family: bool) -> list[int]:
        """Stop a process, or it and all below it; return who is stopped."""
        stopped: list[int] = []
        while more := [
            one for one in (self.processes().below(pid) if family else [pid]) if one not in stopped
        ]:
            for one in more:
                stopped.append(one)
                with contextlib.suppress(OSError):
                    # Threads that wait for a processor stop when they get one.
                    for task in os.listdir(f"/proc/{one}/task"):
                        os.setpriority(os.PRIO_PROCESS, int(task), URGENT)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, signal.SIGSTOP)
            wait_stopped(more)
        return stopped

    def _choose(self, deed: Deed, found: Processes) -> Done | None:
        """Return what is to be done to whom; None if there is nobody to do it to."""
        if deed.action is Action.RELOAD:
            return Done(deed, 0.0, 0)
        candidates = sorted(found.by_kind.get(deed.target, ()))
        if deed.action in (Action.TERM, Action.REPLACE):
            # Who is asked a second time leaves at once.
            candidates = [pid for pid in candidates if pid not in self._asked]
        if not candidates:
            return None
        pid = candidates[deed.pick % len(candidates)]
        one = Done(deed, 0.0, pid, tenant=found.names[pid].partition(":")[2])
        if deed.action in (Action.TERM, Action.REPLACE):
            self._asked.add(pid)
        else:
            one.victims = found.below(pid) if deed.target in KEEPERS else [pid]
        return one

    def _reload(self, one: Done) -> None:
        """Change the configuration and put it in force, or start one tenant's processes anew."""
        if one.deed.target == "tree":
            file = self.tree.folder / "pyttpd.toml"
            text, count = re.subn(
                r"max_requests = (\d+)\n",
                lambda found: f"max_requests = {int(found[1]) ^ (1 + one.deed.pick % 3)}\n",
                file.read_text(),
            )
            assert count, "nothing to change"
            file.write_text(text)
        one.command = self._ask_to_reload(one.deed)

    def _ask_to_reload(self, deed: Deed) -> subprocess.Popen[bytes]:
        tenants = [host.partition(".")[0] for host in self._hosts]
        what = [] if deed.target == "tree" else [tenants[deed.pick % len(tenants)]]
        # As urgent as anybody's, not as we are.
        command = [
            "nice",
            "-n",
            str(-URGENT),
            sys.executable,
            "-I",
            "-m",
            "pyttpd_ctl",
            "reload",
            *what,
            "--runtime-dir",
        ]
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
            time.sleep(0.1)
            one.command = self._ask_to_reload(one.deed)
            return False
        if one.command.returncode:
            one.violations.append(f"status {one.command.returncode}: {text[-300:]!r}")
        return True

    def _has_ended(self, one: Done) -> bool:
        """Say whether the process is gone, and who dies with it as well."""
        if state(one.pid) not in "XZ":
            return False
        if not one.lives_on:
            return True
        # Of what it has started since the last look some may be left, until the runner finds that it is nobody's.
        found = self.processes()
        runner = self.tree.process.pid
        return not any(pid in found.names for pid in one.victims) and not any(
            parent == runner and found.names[pid][1:].partition(":")[2] == one.tenant
            for pid, parent in found.parents.items()
            if ":" in found.names[pid] and not found.names[pid].startswith(("v:", "l:"))
        )

    def _await_ends(self, done: list[Done]) -> None:
        """Wait until all processes that something was done to are gone, as they have to be."""
        began = time.monotonic()
        waiting = list(done)
        while waiting:
            if any(one.victims for one in done):
                self._look_again(done, waiting)
            for one in list(waiting):
                within = STOPPED_WITHIN if one.deed.action is Action.STOP else WHOLE_WITHIN
                if (
                    self._has_reloaded(one, len(done) == 1)
                    if one.command is not None
                    else self._has_ended(one)
                ):
                    one.until = time.monotonic()
                elif time.monotonic() - began > within:
                    one.violations.append(f"process {one.pid} was still there after {within} s")
                    self._end(one)
                else:
                    continue
                waiting.remove(one)
            time.sleep(0.01)
        self._look_again(done, waiting)

    def _end(self, one: Done) -> None:
        """Kill what doesn't end by itself."""
        if one.command is not None:
            one.command.kill()
            one.command.communicate()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGKILL)

    def _look_again(self, done: list[Done], waiting: list[Done]) -> None:
        """Look at who lives on until its keeper is killed; and whether somebody else has what was excused."""
        found = self.processes()
        families = {one.pid: found.below(one.pid) for one in waiting if one.lives_on}
        look = Holdings.look(found.names, self.tree.port)
        for one in waiting:
            if one.lives_on and state(one.pid) not in "XZ":  # from then on its family dies
                one.victims = families[one.pid]
        dying = [pid for one in done for pid in one.victims]
        for one in done:
            if not one.lives_on:
                one.see_again(look, dying)
            elif one in waiting and state(one.pid) not in "XZ":
                one.see(look, dying)

    # ---- judging ----

    def judge(self, failures: Iterable[Failure]) -> list[str]:
        """Give each failure to the deed that may have cost it; return those that none may have cost, in words."""
        violations = [f"{one.deed}: {text}" for one in self.done for text in one.violations]
        for failure in failures:
            for one in self.done:
                if why := excuse(one, failure):
                    one.lost.append((failure, why))
                    break
            else:
                before = [one for one in self.done if one.at <= failure.at + 1.0][-3:]
                violations.append(f"{in_words(failure)}: " + "; ".join(_told(one, failure) for one in before))
        return violations


def in_words(failure: Failure) -> str:
    return (
        f"{failure.what} ({failure.detail}) of {failure.kind} to {failure.host}, port {failure.port}, "
        f"after {failure.served} answers, connection {failure.at - failure.opened:.2f} s old"
    )


def _told(one: Done, failure: Failure) -> str:
    text = f"{failure.at - one.at:.2f} s after {one.deed} ({one.pid})"
    if one.until:
        text += f", {failure.at - one.until:.2f} s after its end"
    if one.look is not None:
        if any(not one.look.has[pid] for pid in one.victims if pid in one.look.has):
            text += ", ended before it was seen"
        text += f", then held by {one.look.who(failure.port) or 'nobody'}"
    return text


#: Why a connection may be lost: only the victim had it; or it and somebody else, on the way from one to the other; or
#: nobody had looked since it came to a victim that lived on.
HELD, PASSING, LATE = "held", "passing", "late"


def excuse(one: Done, failure: Failure) -> str:
    """Say why `failure` may be the end of a connection that only the victims of `one` had; "": it may not."""
    if failure.what not in HARMLESS or one.look is None or failure.at < one.at:
        return ""
    dead = one.until or float("inf")
    if failure.opened > dead or failure.alive > dead:
        return ""  # it was made, or has been answered, since
    if one.deed.target.endswith("listener") and failure.served:
        return ""  # it had found its worker
    if failure.opened <= one.look.since:
        for socket, port in one.held.items():
            if port == failure.port:
                return PASSING if socket in one.passing else HELD
    if one.lives_on and (failure.opened > one.look.since or failure.port in _on_the_way(one.look)):
        match one.deed.target:
            case "keeper supervisor" if failure.host == f"{one.tenant}.localhost":
                return LATE
            case "keeper listener":
                return LATE
    return ""


def _on_the_way(look: Holdings) -> set[int]:
    """Return the ports of the connections that no worker has yet."""
    taken = frozenset().union(*(look.has[pid] for pid, name in look.names.items() if is_worker(name)))
    return {port for socket, port in look.ports.items() if socket not in taken} | look.unaccepted


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

WHAT = ("refused", "reset", "closed", "closed-idle", "timeout", "wrong", "5xx")


def report(
    done: list[Done], summaries: list[Summary], failures: list[Failure], retired: int
) -> dict[str, Any]:
    """Return what was done and what clients saw, as the rows that `table` prints; sums.py adds several of them up."""
    deeds: dict[str, dict[str, Any]] = {}
    for one in done:
        row = deeds.setdefault(
            str(one.deed),
            {
                "action": one.deed.action.value,
                "times": 0,
                "held": 0,
                HELD: 0,
                PASSING: 0,
                LATE: 0,
                "waits": [],
            },
        )
        row["times"] += 1
        row["held"] += len(one.held)
        row["waits"].append(round(one.whole_after, 3))
        for _, why in one.lost:
            row[why] += 1
    seen = {
        summary.kind: {
            "answered": summary.answered,
            "connections": summary.connections,
            "longest": summary.longest,
            **Counter(failure.what for failure in failures if failure.kind == summary.kind),
        }
        for summary in summaries
    }
    lost = [
        f"{one.deed} ({one.pid}), {why}: {in_words(failure)}" for one in done for failure, why in one.lost
    ]
    return {"deeds": deeds, "retired": retired, "clients": seen, "lost": lost}


def table(found: dict[str, Any]) -> str:
    """Return in lines what was done and what clients saw."""
    lines = [
        f"{'':<28}{'':>6}{'only its victim':>17}{'lost, that':>12}{'on the':>9}{'since the':>11}{'whole after, s':>19}",
        f"{'done':<28}{'times':>6}{'had':>17}{'were its':>12}{'way':>9}{'last look':>11}{'median':>10}{'most':>9}",
    ]
    totals: Counter[str] = Counter()
    for name, row in sorted(found["deeds"].items()):
        waits = sorted(row["waits"])
        totals[row["action"]] += row["times"]
        lines.append(
            f"{name:<28}{row['times']:>6}{row['held']:>17}{row[HELD]:>12}{row[PASSING]:>9}{row[LATE]:>11}"
            f"{waits[len(waits) // 2]:>10.2f}{waits[-1]:>9.2f}"
        )
    lines += ["", "in all: " + ", ".join(f"{count} {name}" for name, count in sorted(totals.items()))]
    lines += [f"workers retired meanwhile: {found['retired']}", ""]
    lines.append(
        f"{'clients':<12}{'answered':>10}{'connections':>13}{'longest, s':>12}"
        + "".join(f"{w:>13}" for w in WHAT)
    )
    for kind, row in found["clients"].items():
        lines.append(
            f"{kind:<12}{row['answered']:>10}{row['connections']:>13}{row['longest']:>12.2f}"
            + "".join(f"{row.get(w, 0):>13}" for w in WHAT)
        )
    return "\n".join(lines)
