"""The benchmarks work: that there are figures is checked here, never their size. `make bench`, `make profile`, `make
bench-micro` run the same programs for longer, with all peers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from suite import cases, clients, peers
from suite.figures import Options

BENCH = Path(__file__).resolve().parents[2] / "bench"
#: A function that each role's process is in all the time that it serves.
OURS = {
    "listener-http": "serve (pyttpd_listener/listener.py:",
    "umaster": "serve (pyttpd_umaster/umaster.py:",
    "supervisor-t0": "serve (pyttpd_vhost/supervisor.py:",
    "prototype-t0": "(pyttpd_vhost/prototype.py:",
    "worker-t0": "(pyttpd_vhost/worker.py:",
    "master": "serve (pyttpd_master/",
    "init": "serve (pyttpd_init/",
}


def run(*arguments: str) -> str:
    """Run a program of bench/ as `make` does."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=BENCH, capture_output=True, text=True, timeout=110
    )
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


@pytest.mark.root
@pytest.mark.program("wrk", "taskset", "nginx")
def test_a_case_has_figures_of_each_peer(tmp_path: Path) -> None:
    said = run(
        *("suite", "--case", "static-1k", "--peer", "pyttpd", "nginx", "--rounds", "1", "--seconds", "1"),
        *("--setting", "one core, access logs", "--into", str(tmp_path)),
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert {"processor", "kernel", "python", "pyttpd", "nginx", "client", "commit", "took"} <= set(
        results["about"]
    )
    found = results["results"]["one core, access logs"]["static-1k"]
    assert set(found) == {"pyttpd", "nginx"}
    for name, figures in found.items():
        assert not figures["failed"], figures
        assert figures["errors"] == 0, name
        assert all(len(figures[key]) == 1 and figures[key][0] > 0 for key in ("rate", "cost", "p99")), figures
        assert all(figures["latency"][key] > 0 for key in ("p50", "p99", "p99.9")), figures
    assert "static-1k (one core, access logs)" in results["missing"], "not all of its peers were asked for"
    assert (tmp_path / "tables.md").read_text() in said
    assert ">nginx</text>" in (tmp_path / "static-1k.svg").read_text()


#: Answers with `body`; with `last` it is gone after that many connections.
SERVER = """
import os, socketserver, sys
port, body, last = int(sys.argv[1]), sys.argv[2].encode(), int(sys.argv[3])
served = 0
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        global served
        served += 1
        if last and served > last:
            os._exit(1)
        while self.rfile.readline().strip():
            pass
        self.wfile.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n" % len(body))
        self.wfile.write(body)
socketserver.TCPServer.allow_reuse_address = True
socketserver.TCPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def played(name: str, body: str, last: int = 0) -> peers.Peer:
    def start(setting: peers.Setting) -> list[list[str]]:
        return [[sys.executable, "-I", "-c", SERVER, str(setting.port), body, str(last)]]

    return peers.Peer(name, start, ("true",))


@pytest.mark.program("wrk", "taskset", "timeout")
def test_who_does_not_start_answers_wrongly_or_dies_is_out_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clients, "READY_WITHIN", 1.0)
    case = cases.Case(
        "it",
        "A case",
        "it",
        (
            played("good", "Hello, world!"),
            peers.Peer("ends", lambda _: [["false"]], ("true",)),
            played("wrong", "Hello, World!"),
            played("dies", "Hello, world!", last=20),
        ),
        close=True,
        common_rate=True,
    )
    ((_, found),) = cases.measured([(case, case.peers)], Options(2, 1.0), common_rate=True)
    assert list(found) == ["good", "ends", "wrong", "dies"]
    assert "ended with 1" in found["ends"].failed
    assert "Hello, World!" in found["wrong"].failed
    assert found["dies"].failed
    good = found["good"]
    assert not good.failed
    assert len(good.rate) == 2
    # on a busy machine a short round may be over before the first answer: such a one has no cost for each
    assert len(good.cost) == sum(rate > 0 for rate in good.rate)
    assert len(good.p99) == 2
    assert 0 < good.latency["p50"] <= good.latency["p99"] <= good.latency["p99.9"]
    assert good.common == max(good.rate) / 2


@pytest.mark.program("wrk", "taskset", "timeout")
def test_neighbours_share_their_servers_and_who_fails_in_one_case_is_tried_in_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clients, "READY_WITHIN", 1.0)
    ports: list[int] = []

    def start(setting: peers.Setting) -> list[list[str]]:
        ports.append(setting.port)
        return played("good", "Hello, world!").start(setting)

    both = (peers.Peer("good", start, ("true",)), peers.Peer("ends", lambda _: [["false"]], ("true",)))
    wrong = {"127.0.0.1": b"something else"}
    these = [
        cases.Case("first", "", "it", both, close=True, bodies=wrong),
        cases.Case("second", "", "it", both[:1], close=True),
        cases.Case("third", "", "it", both, close=True),
        cases.Case("fourth", "", "not it", both[:1], close=True),
    ]
    announced: list[cases.Case] = []
    found = {}
    chosen = [(case, case.peers) for case in these]
    for case, figures in cases.measured(chosen, Options(1, 1.0), announced.append, common_rate=False):
        assert case is announced[-1]
        found[case.name] = figures
    assert announced == these
    assert len(ports) == 2
    assert "Hello, world!" in found["first"]["good"].failed
    assert all("ended with 1" in found[name]["ends"].failed for name in ("first", "third"))
    assert [list(found[name]) for name in ("second", "fourth")] == [["good"], ["good"]]
    assert all(not found[name]["good"].failed for name in ("second", "third", "fourth"))


@pytest.mark.parametrize("ended", [[], ["first"]], ids=["before anything has ended", "in the second case"])
def test_a_run_that_is_interrupted_leaves_what_it_has_and_says_what_is_missing(
    tmp_path: Path, ended: list[str]
) -> None:
    """A played suite in which a study never ends. What an earlier run has left isn't taken for this one's."""
    (tmp_path / "results.json").write_text("an earlier run's")
    code = (
        "import time; from suite import __main__ as it; from suite.figures import Row, Study\n"
        "def run(name):\n"
        f"    return [Row('it', 'pyttpd', 's', [1.0])] if name in {ended} else time.sleep(1000)\n"
        "it.CASES = tuple(Study(each, each, lambda _, each=each: run(each)) for each in ('first', 'second'))\n"
        "it.main()"
    )
    command = [sys.executable, "-c", code, "--setting", "one core, access logs", "--into", str(tmp_path)]
    left = [name for name in ("first", "second") if name not in ended]
    with subprocess.Popen(command, cwd=BENCH, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.rstrip().endswith(f": {left[0]}"):
                break
        process.terminate()
        assert process.wait(30) == 128 + 15
    results = json.loads((tmp_path / "results.json").read_text())
    assert [name for found in results["results"].values() for name in found] == ended
    assert results["missing"] == [f"{name} (one core, access logs)" for name in left]


@pytest.mark.root
@pytest.mark.program("wrk", "taskset")
def test_a_profile_has_a_graph_of_each_role(tmp_path: Path) -> None:
    run("suite.profile", "--case", "wsgi-close", "--seconds", "1", "--into", str(tmp_path))
    folder = tmp_path / "wsgi-close"
    summary = (folder / "summary.txt").read_text()
    for name, frame in OURS.items():
        assert frame in (folder / f"{name}.svg").read_text(), name
        assert f"\n{name}: " in summary
    # Where coverage measures, what waits is the line of its own that it puts between (tests/support/measure.py).
    waits = ("  ready = poll(", "  return self._real.poll(")
    assert any(line in summary for line in waits), "who waits is seen there, with what stands in the line"


def test_the_micro_benchmarks_run() -> None:
    assert " passed" in run("pytest", "-c", "micro/pytest.toml", "micro", "--benchmark-disable")
