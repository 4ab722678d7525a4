"""What a pod's containers do before they leave, against real sockets; umaster's own words are in its tests."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from pyttpd import prestop


@contextlib.contextmanager
def answering(*answers: bytes, host: str = "127.0.0.1") -> Iterator[int]:
    """Answer one connection after the other; yield the port. The last answer is the last connection's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:

        def serve() -> None:
            for answer in answers:
                sock, _ = server.accept()
                with sock, contextlib.suppress(OSError):
                    sock.recv(65536)
                    sock.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def said(http: float, metrics: float) -> bytes:
    return (
        "HTTP/1.0 200 OK\r\n\r\n# HELP pyttpd_umaster_listeners Channels.\n"
        f'pyttpd_umaster_listeners{{listener="http"}} {http}\n'
        f'pyttpd_umaster_listeners{{listener="metrics"}} {metrics}\n'
    ).encode()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_it_waits_until_the_last_listener_has_left(host: str) -> None:
    with answering(said(1, 1), said(0, 1), said(0, 0), host=host) as port:
        assert prestop.wait(0.0, port, 60.0) == "all listeners have left"


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.0 200 OK\r\n\r\n", b"\0" * 100])
def test_what_it_can_not_understand_ends_the_wait(answer: bytes) -> None:
    with answering(answer) as port:
        assert prestop.wait(0.0, port, 60.0).startswith("umaster doesn't say: ")


def test_an_answer_without_an_end_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prestop, "MAX_ANSWER", 1000)
    with answering(b"#" * 100_000) as port:
        assert prestop.wait(0.0, port, 60.0) == "umaster doesn't say: an answer without an end"


def test_nobody_there_ends_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert prestop.wait(0.0, port, 60.0).startswith("umaster doesn't say: ")


def test_a_limit_ends_it(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(said(1, 1)) as port:
        assert prestop.main(["--until-left", str(port), "--at-most", "0.1"]) == 0
    assert prestop.main(["--delay", "0.01"]) == 0
    assert capsys.readouterr().out == "the time is over\n" * 2
