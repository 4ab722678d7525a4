"""The namespace holder: `python -I -m pyttpd_init.holder`, PID 1 of the compose service `net`.

It is the owner of the network namespace that init works in, so that init can be replaced and the namespace
stays. The order of things: set the egress rule (the one thing that takes CAP_NET_ADMIN), read it back, give
up every capability and be confined, say so in the health file (init waits for it: there is no moment without
the rule), sleep. Woken every few seconds it does no more than say that it is alive, and reap what the kernel
may have given it as PID 1.

A tenant with a database has a holder of its own, for a namespace in the network of the two (compose:
examples/database). There `--allow IP:PORT` names the one thing that may be opened from that namespace.

With `--keep-sockets` it also gives init the pair in which copies of the listening sockets lie (deposit.py): to who
comes with its own uid, 0, from its own network namespace, and without reading anything.

A rule that can't be set ends the process with status 1 and a sentence: a tree without its third lock must not
start.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sys

from pyttpd.confine import ConfineError, confine, role_policy
from pyttpd.health import DEFAULT_FILE, STALE_AFTER, HealthFile
from pyttpd.log import Log
from pyttpd.service import StartError, add_allow

from pyttpd_init.deposit import Desk
from pyttpd_init.egress import Allowed, EgressError, set_egress, verify_egress

#: How often (s) the holder says that it is alive; often enough that one late turn is not taken for its end.
HEARTBEAT = STALE_AFTER / 5
_LEAVE = frozenset({signal.SIGTERM, signal.SIGINT})
_AWAITED = _LEAVE | {signal.SIGCHLD, signal.SIGIO}


def main(arguments: list[str]) -> int:
    """Hold the namespace until SIGTERM or SIGINT; return the exit status: 0, or 1 when it can't be locked."""
    parser = argparse.ArgumentParser(
        prog="python -I -m pyttpd_init.holder",
        description="Lock this network namespace against outgoing connections, then hold it.",
        allow_abbrev=False,
    )
    parser.add_argument("--health-file", default=DEFAULT_FILE, help="where to say how the holder is")
    parser.add_argument(
        "--keep-sockets",
        action="store_true",
        help="keep copies of init's listening sockets for its successors",
    )
    add_allow(parser)
    options = parser.parse_args(arguments)
    log = Log("init", "net")
    # As PID 1 nothing has a default action; blocked, the signals wait for us from the first moment.
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    desk = None
    try:
        if options.keep_sockets:
            desk = Desk()
            # The kernel says by a signal that somebody has come, which we wait for anyway.
            fcntl.fcntl(desk.sock, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(desk.sock, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
        lock(log, options.health_file, [Allowed(address) for address in options.allow])
    except (StartError, EgressError, ConfineError) as error:
        log.error("cannot hold the network namespace", error=error)
        return 1
    hold(HealthFile(options.health_file), desk)
    log.info("network namespace given up")
    return 0


def lock(log: Log, health_file: str, allowed: list[Allowed]) -> None:
    """Set and verify the rule, give up all rights but that to write the health file. Raises EgressError,
    ConfineError.
    """
    set_egress(allowed=allowed)
    verify_egress(allowed=allowed)
    report = confine(role_policy(write=(os.path.dirname(os.path.abspath(health_file)),), allow_connect=False))
    but = {"but_to": " ".join(str(each.address) for each in allowed)} if allowed else {}
    log.info("network namespace locked: nothing opens a connection from here", **but, confined=report)


def hold(health: HealthFile, desk: Desk | None = None) -> None:
    """Sleep until told to leave."""
    health.write("ready")
    while True:
        woken = signal.sigtimedwait(_AWAITED, HEARTBEAT)
        if woken is not None and woken.si_signo in _LEAVE:
            break
        reap()
        if desk is not None:
            desk.serve()
        health.write("ready")
    health.remove()


def reap() -> None:
    """Collect every child that has ended: PID 1 is given those whose parents have."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
