"""What a pod's container does before it is asked to leave (Kubernetes' preStop hook): `python -I -m pyttpd.prestop`.

The engine of a pod tells all of its containers at once, while clients still find the pod: the cluster's endpoints,
proxies and load balancers take a few seconds to forget it. So each container waits, serving as ever, and they leave in
the order that plain mode's runner keeps (listeners first, then those who serve what they gave):

    a listener             --delay SECONDS                        as long as the cluster may take to forget the pod
    umaster, the others    --delay SECONDS --until-left PORT      and then until umaster (its metrics, on PORT) has no
                                                                  listener any more: nobody offers anything new

init is a sidecar: the engine ends it after all others by itself, and until then the sockets stay open.

It reads one number, of umaster's or, if that is broken, of nobody's: an answer that can't be had or understood ends the
wait, as does `--at-most`. The engine's own limit (terminationGracePeriodSeconds) counts this time, too.
"""

from __future__ import annotations

import argparse
import re
import socket
import sys
import time

#: How often (s) umaster is asked, and how long it has for an answer.
INTERVAL = 0.2
PATIENCE = 2.0
#: Longer than what umaster tells with a thousand tenants; what is longer is not its answer.
MAX_ANSWER = 16 * 1024 * 1024
_LISTENERS = re.compile(rb'^pyttpd_umaster_listeners\{listener="[^"]*"\} ([0-9.e+]+)', re.MULTILINE)


def _connection(port: int) -> socket.socket:
    """Return a connection to a metrics port of this pod, whichever family it is bound to."""
    try:
        return socket.create_connection(("127.0.0.1", port), PATIENCE)
    except OSError:
        return socket.create_connection(("::1", port), PATIENCE)


def listeners(port: int) -> int:
    """Return how many channels of listeners umaster has. Raises OSError or ValueError if it doesn't say."""
    text = bytearray()
    deadline = time.monotonic() + PATIENCE
    with _connection(port) as sock:
        sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        while data := sock.recv(65536):
            text += data
            if len(text) > MAX_ANSWER or time.monotonic() > deadline:
                raise ValueError("an answer without an end")
    found = _LISTENERS.findall(text)
    if not found:
        raise ValueError("an answer without a listener")
    return sum(float(count) > 0 for count in found)


def wait(delay: float, port: int | None, at_most: float) -> str:
    """Wait as the module says; return why it ended."""
    started = time.monotonic()
    time.sleep(min(delay, at_most))
    if port is None:
        return "the time is over"
    while time.monotonic() - started < at_most:
        try:
            if not listeners(port):
                return "all listeners have left"
        except (OSError, ValueError) as error:
            return f"umaster doesn't say: {error}"
        time.sleep(INTERVAL)
    return "the time is over"


def main(arguments: list[str]) -> int:
    """Wait, say why it ended, return 0: a hook that fails would be an event in the log, and changes nothing."""
    parser = argparse.ArgumentParser(
        prog="python -I -m pyttpd.prestop",
        description="Wait until this container may leave.",
        allow_abbrev=False,
    )
    parser.add_argument("--delay", type=float, default=0.0, help="seconds to wait in any case")
    parser.add_argument(
        "--until-left", type=int, metavar="PORT", help="then until umaster, on this port, has no listener"
    )
    parser.add_argument("--at-most", type=float, default=60.0, help="seconds to wait in all")
    options = parser.parse_args(arguments)
    print(wait(options.delay, options.until_left, options.at_most))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
