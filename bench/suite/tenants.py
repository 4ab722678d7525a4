"""1,000 tenants, mostly asleep: how long the tree takes until all of them are there, what each costs in memory, and how
long the first visitor of one waits.

The start is compared with as many bare interpreters, all asked for at once by a process that does nothing else, in the
same rounds. Memory is read of every process that is a tenant's, its keeper included; as the two share pages, there is
also what the machine has less than before, divided by the tenants: the tree's other processes, page tables, sockets
and namespaces are in that. Half of the tenants serve files, half are WSGI applications; each has a uid of its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from suite import household, peers
from suite.clients import WrongAnswer
from suite.figures import OURS, Limit, Options, Row, Study
from suite.machine import children, family, free_ports, private_memory, processor_time

#: How many, unless PYTTPD_BENCH_TENANTS says otherwise: a quick look takes fewer.
TENANTS = int(os.environ.get("PYTTPD_BENCH_TENANTS", "1000"))
#: So many different ones are asked for the first time, and again.
ASKED = 30
#: A tree of 1,000 takes half a minute with all that is asked of it, so there are two of them.
ROUNDS = 2
#: How long (s) the tree has until all are there, and until it has ended.
PATIENCE = 240.0
#: What they cost while they sleep is measured for so long (s).
NAP = 3.0
#: What uWSGI says when it has loaded the application.
LOADED = b"WSGI app 0 "
BARE, UWSGI = "bare interpreters", "uWSGI, one each, --cheap"
FIRST_UID = 20_001
MEGABYTE = 1024 * 1024
HELLO = b"Hello, world!"
SLEEPING = Limit(most=12.0)
STARTED = Limit(BARE, most=3.0)

TENANT = """
[vhost.t{number}]
hosts = ["t{number}.example"]
uid = {uid}
kind = "{kind}"
root = "{root}"
{application}
access_log = "{log}"
pool = {{ mode = "ondemand", max_workers = 2 }}
"""


def command(setting: peers.Setting, count: int) -> list[str]:
    """Write the configuration of `count` sleeping tenants; return the tree's command."""
    applications, files = peers.applications(setting), setting.folder / "files"
    files.mkdir(mode=0o755)
    (files / "index.html").write_bytes(HELLO)
    tenants = ""
    for number in range(count):
        wsgi = bool(number % 2)
        tenants += TENANT.format(
            number=number,
            uid=FIRST_UID + number,
            kind="wsgi" if wsgi else "static",
            root=applications if wsgi else files,
            application='application = "hello:app"' if wsgi else "",
            log="combined" if setting.log else "off",
        )
    (words,) = peers.tree(setting, tenants)
    return words


def available() -> int:
    """Bytes of memory that the machine could still give away (proc(5), MemAvailable)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("bench: no MemAvailable in /proc/meminfo")


@contextlib.contextmanager
def tree(count: int, options: Options) -> Iterator[tuple[int, int, float, float]]:
    """Run a tree of `count` sleeping tenants; yield its port, its runner's pid, how long it took until all were ready,
    and the processor time of that (s).
    """
    folder = household.new_folder()
    port = free_ports(24)
    words = command(peers.Setting(folder, port, options.log, port + 1), count)
    health = folder / "run" / "health"
    with open(folder / "output", "ab") as output:
        begin = time.monotonic()
        runner = subprocess.Popen(words, cwd=folder, stdout=output, stderr=output, start_new_session=True)
    try:
        late = [health / f"vhost.t{number}" / "state" for number in range(count)]
        while late := [path for path in late if not is_ready(path)]:
            if runner.poll() is not None or time.monotonic() - begin > PATIENCE:
                said = (folder / "output").read_text(errors="replace").splitlines()[-3:]
                raise SystemExit(f"bench: {len(late)} of {count} tenants aren't ready: {' | '.join(said)}")
            time.sleep(0.05)
        yield port, runner.pid, time.monotonic() - begin, processor_time(runner.pid)
    finally:
        runner.send_signal(signal.SIGTERM)
        try:
            runner.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            runner.kill()  # everything below dies with it
            runner.wait()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def cheap(count: int, options: Options) -> Iterator[dict[int, int]]:
    """Run an uWSGI for each of `count` tenants, with the tenant's uid, that has no worker until somebody comes; yield
    the pid of each, by port.
    """
    folder = household.new_folder()
    first = free_ports(count)
    applications = peers.applications(peers.Setting(folder, first, options.log, first))
    servers: dict[int, subprocess.Popen[bytes]] = {}
    try:
        for number in range(count):
            (home := folder / str(number)).mkdir()
            os.chown(home, FIRST_UID + number, FIRST_UID + number)
            words = ["uwsgi", "--master", "--plugin", "python3", "--need-app", "--die-on-term", "--cheap"]
            words += ["--idle", "600", "--processes", "2", "--uid", str(FIRST_UID + number)]
            words += ["--gid", str(FIRST_UID + number), "--chdir", str(applications), "--module", "hello:app"]
            words += ["--http11-socket", f"127.0.0.1:{first + number}"]
            words += ["--logto", f"{home}/access.log"] if options.log else ["--disable-logging"]
            with open(home / "output", "ab") as output:
                servers[first + number] = subprocess.Popen(words, stdout=output, stderr=output)
        end = time.monotonic() + PATIENCE
        for number, server in enumerate(servers.values()):
            # Not by connecting: whoever does so wakes it.
            while not any(LOADED in file.read_bytes() for file in (folder / str(number)).iterdir()):
                if server.poll() is not None or time.monotonic() > end:
                    raise SystemExit("bench: an uWSGI has not loaded its application")
                time.sleep(0.05)
        yield {port: server.pid for port, server in servers.items()}
    finally:
        for server in servers.values():
            server.send_signal(signal.SIGTERM)
        for server in servers.values():
            try:
                server.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def is_ready(path: Path) -> bool:
    """Whether a keeper has written that its role is ready."""
    try:
        return path.read_bytes() == b"ready\n"
    except OSError:
        return False


def bare(count: int) -> tuple[float, float]:
    """Start `count` interpreters at once and wait for all; return the time and the processor time that took (s)."""
    before = os.times()
    begin = time.monotonic()
    words = [peers.PYTHON, "-I", "-c", "pass"]
    pids = [os.posix_spawn(words[0], words, os.environ) for _ in range(count)]
    for pid in pids:
        if os.waitpid(pid, 0)[1]:
            raise SystemExit("bench: a bare interpreter has failed")
    took, after = time.monotonic() - begin, os.times()
    used = sum(after[:4]) - sum(before[:4])
    return took, used


def tenants_processes(runner: int) -> dict[str, list[int]]:
    """The processes of each tenant, its keeper first."""
    found, parents = {}, children()
    for pid in parents.get(runner, []):
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            if name.startswith("v:"):
                found[name[2:]] = family(pid, parents=parents)
    return found


def proportional(pids: list[int]) -> int:
    """Bytes of `pids`, each shared page counted by how many share it (smaps_rollup's Pss)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def first_byte(port: int, host: str) -> float:
    """Ask `host` on a new connection; return how long (s) the first byte took. The whole answer is looked at."""
    begin = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), 60) as sock:
        sock.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = sock.recv(65536)
        took = time.monotonic() - begin
        # Not to the end: an uWSGI that speaks HTTP/1.1 closes four seconds after its answer.
        while not answer.endswith(HELLO) and (more := sock.recv(65536)):
            answer += more
    if not answer.startswith(b"HTTP/1.1 200 ") or not answer.endswith(b"\r\n\r\n" + HELLO):
        raise WrongAnswer(f"{host}: {answer[:200]!r}")
    return took


def visits(port: int, numbers: range) -> float:
    """Ask these tenants, one after the other; return the median of what they took (s)."""
    return statistics.median(first_byte(port, f"t{number}.example") for number in numbers)


def measure(options: Options) -> list[Row]:
    """Start and end everything, in turns."""
    count, ours = TENANTS, OURS
    start, used = f"{count:,} started", f"{count:,} started, processor time"
    asleep = "a sleeping tenant's processes, shared pages by share"
    first_wsgi, woken_private = "first answer of a sleeping one: WSGI", "a woken tenant's processes, private"
    rows = {
        name: Row(name[0], name[1], unit, bars=bars)
        for name, unit, bars in (
            ((start, ours), "s", (STARTED,)),
            ((start, BARE), "s", ()),
            ((used, ours), "s", ()),
            ((used, BARE), "s", ()),
            (("a sleeping tenant's supervisor, private", ours), "MB", (SLEEPING,)),
            (("a sleeping tenant's keeper, private", ours), "MB", ()),
            ((asleep, ours), "MB", ()),
            ((asleep, UWSGI), "MB", ()),
            (("what the machine has less, per sleeping tenant", ours), "MB", ()),
            (("processor time of all while they sleep, per second", ours), "ms", ()),
            (("first answer of a sleeping one: files", ours), "ms", ()),
            ((first_wsgi, ours), "ms", ()),
            ((first_wsgi, UWSGI), "ms", ()),
            (("processor time of waking one", ours), "ms", ()),
            (("the next answer: files", ours), "ms", ()),
            (("the next answer: WSGI", ours), "ms", ()),
            ((woken_private, ours), "MB", ()),
            ((woken_private, UWSGI), "MB", ()),
        )
    }

    def note(figure: str, server: str, value: float) -> None:
        rows[figure, server].values.append(value)

    for number in range(min(options.rounds, ROUNDS)):
        took, spent = bare(count)
        note(start, BARE, took)
        note(used, BARE, spent)
        before = available()
        with tree(count, options) as (port, runner, took, spent):
            note(start, ours, took)
            note(used, ours, spent)
            families = tenants_processes(runner)
            if len(families) != count or any(len(pids) != 2 for pids in families.values()):
                raise SystemExit(f"bench: a sleeping tenant isn't a keeper and a supervisor: {families}")
            note(
                "what the machine has less, per sleeping tenant",
                ours,
                (before - available()) / count / MEGABYTE,
            )
            sample = list(families.values())[:: max(1, count // 100)]
            for figure, value in (
                ("a sleeping tenant's keeper, private", [private_memory([keeper]) for keeper, _ in sample]),
                ("a sleeping tenant's supervisor, private", [private_memory([role]) for _, role in sample]),
                (
                    "a sleeping tenant's processes, shared pages by share",
                    [proportional(pids) for pids in sample],
                ),
            ):
                note(figure, ours, statistics.median(value) / MEGABYTE)
            before_nap = processor_time(runner)
            time.sleep(NAP)
            slept = (processor_time(runner) - before_nap) / NAP * 1000
            note("processor time of all while they sleep, per second", ours, slept)
            step = max(2, count // ASKED // 2 * 2)
            chosen = {
                "files": range(0, count, step)[: ASKED // 2],
                "WSGI": range(1, count, step)[: ASKED // 2],
            }
            for what in ("first answer of a sleeping one", "the next answer"):
                spent = processor_time(runner)
                for kind, numbers in chosen.items():
                    note(f"{what}: {kind}", ours, visits(port, numbers) * 1000)
                if what.startswith("first"):
                    visited = sum(map(len, chosen.values()))
                    note(
                        "processor time of waking one",
                        ours,
                        (processor_time(runner) - spent) / visited * 1000,
                    )
            parents = children()
            woken = [
                private_memory(family(families[f"t{each}"][0], parents=parents)) for each in chosen["WSGI"]
            ]
            note(woken_private, ours, statistics.median(woken) / MEGABYTE)
        with cheap(ASKED // 2, options) as servers:
            parents = children()
            of_each = [proportional(family(pid, parents=parents)) for pid in servers.values()]
            note(asleep, UWSGI, statistics.median(of_each) / MEGABYTE)
            answers = [first_byte(port, "127.0.0.1") * 1000 for port in servers]
            note(first_wsgi, UWSGI, statistics.median(answers))
            parents = children()
            private = [private_memory(family(pid, parents=parents)) / MEGABYTE for pid in servers.values()]
            note(woken_private, UWSGI, statistics.median(private))
        print(
            f"    round {number + 1}: "
            + ", ".join(
                f"{row.figure} ({row.server}) {row.values[-1]:.3g} {row.unit}" for row in rows.values()
            ),
            flush=True,
        )
    return list(rows.values())


STUDY = Study(
    "tenants",
    f"{TENANTS:,} tenants, mostly asleep",
    measure,
    ((OURS, peers.PYTTPD_WSGI.version), (UWSGI, peers.UWSGI.version)),
)
