"""What the access log costs: a tree without one beside trees that write "combined" and "json" into a file.

All serve "Hello, world!" by WSGI on kept connections and are measured in turns, by requests/s and by the processor time
of all their processes. At the end it is looked at that every answer has its line.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from suite import peers
from suite.clients import Target, WrongAnswer, wrk
from suite.figures import OURS, Options, Row, Study
from suite.machine import READY_WITHIN, processor_time
from suite.peers import Peer, Setting, running

CONNECTIONS = 32
HELLO = {"127.0.0.1": b"Hello, world!"}
#: Who doesn't write one is the one that the others are compared with.
FORMS = {OURS: "off", "pyttpd, combined": "combined", "pyttpd, json": "json"}
RATE, COST = "requests/s", "processor time of 1,000"


def tree(form: str, folder: list[Path]) -> Peer:
    """A tree that logs so, into access.log in the folder that it adds to `folder`."""

    def start(setting: Setting) -> list[list[str]]:
        logs = setting.folder / "logs"
        logs.mkdir()
        folder.append(logs)
        if os.geteuid() == 0:
            os.chown(logs, 20001, 20001)
        table = peers.tenant(setting, "wsgi", application="hello:app")
        mine = f'access_log = "{form}"\naccess_log_file = "{logs}/access.log"'
        return peers.tree(setting, table.replace('access_log = "off"', mine))

    return Peer(f"pyttpd, {form}", start, peers.OUR_VERSION)


def await_lines(path: Path, count: int) -> None:
    """Wait until there is a line for each answer; those that wrk has left have one, too."""
    end = time.monotonic() + READY_WITHIN
    while (lines := path.read_bytes().count(b"\n")) < count:
        if time.monotonic() > end:
            raise WrongAnswer(f"{lines} lines of {count} answers")
        time.sleep(0.1)


def measure(options: Options) -> list[Row]:
    """All at the same time, in turns."""
    rows = {
        (figure, name): Row(figure, name, unit)
        for figure, unit in ((RATE, "1/s"), (COST, "ms"))
        for name in FORMS
    }
    answers = dict.fromkeys(FORMS, 0)
    with contextlib.ExitStack() as stack:
        servers, folders = {}, {}
        for name, form in FORMS.items():
            folder: list[Path] = []
            port, pids = stack.enter_context(running(tree(form, folder), log=False, pin=options.pin))
            (folders[name],) = folder
            servers[name] = (Target(port, "/", HELLO), pids)
            servers[name][0].wait()
        for number in range(options.rounds + 1):  # the first round warms up
            for name, (target, pids) in servers.items():
                before = processor_time(*pids)
                load = wrk(target, options.turn(number), CONNECTIONS, close=False, pin=options.pin)
                used = processor_time(*pids) - before
                target.check()
                if load.errors:
                    raise WrongAnswer(f"{name}: {load.errors} wrong answers")
                answers[name] += load.requests
                if number:
                    rows[RATE, name].values.append(load.rate)
                    rows[COST, name].values.append(1e6 * used / load.requests)
            if number:
                told = (f"{name} {rows[RATE, name].values[-1]:,.0f}" for name in FORMS)
                print(f"    round {number}: {', '.join(told)}", flush=True)
        for name, form in FORMS.items():
            if form != "off":
                await_lines(folders[name] / "access.log", answers[name])
    return list(rows.values())


STUDY = Study("logs", "What the access log costs", measure, ((OURS, peers.OUR_VERSION),))
