"""Metrics over a real socket: scrapers that are quick, slow, silent, rude or many."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pyttpd import __version__, metrics
from pyttpd.channel import Faults
from pyttpd.loop import Loop


class Served:
    """A server in a thread of its own, and the address it serves at."""

    def __init__(self, collect: Callable[[], list[metrics.Metric]]) -> None:
        self.loop = Loop()
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = listener.getsockname()
        self.server = metrics.Server(self.loop, listener, collect)
        self._stop, theirs = socket.socketpair()
        self._theirs = theirs
        self.loop.add(theirs.fileno(), 1, lambda _: self.loop.stop())
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, 10)

    def end(self) -> None:
        self._stop.send(b".")
        self.thread.join()
        self.server.close()
        self.loop.close()
        self._stop.close()
        self._theirs.close()


def collect() -> list[metrics.Metric]:
    return [*metrics.about("init", "x", metrics.About.me()), metrics.faults("init", Faults())]


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served(collect)
    yield made
    made.end()


def whole(sock: socket.socket) -> bytes:
    answer = b""
    while data := sock.recv(65_536):
        answer += data
    return answer


def test_a_scraper_gets_the_numbers(served: Served) -> None:
    with served.connect() as sock:
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        head, _, body = whole(sock).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    samples = {
        sample.name: sample
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    assert samples["pyttpd_init_info"].labels["version"] == __version__
    assert samples["pyttpd_init_info"].labels["name"] == "x"
    assert samples["pyttpd_init_start_time_seconds"].value <= time.time()


def test_faults_are_told_by_peer_and_reason() -> None:
    faults = Faults()
    faults.add("vhost", "silent")
    faults.add("vhost", "silent")
    text = metrics.render([metrics.faults("umaster", faults)]).decode()
    assert 'pyttpd_umaster_channel_faults_total{peer="vhost",reason="silent"} 2.0' in text


def test_one_that_says_nothing_is_answered_after_a_while(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "READ_TIMEOUT", 0.1)
    with served.connect() as sock:
        assert whole(sock).startswith(b"HTTP/1.1 200 OK\r\n")


def test_one_that_resets_disturbs_nobody(served: Served) -> None:
    for part in (b"", b"GET / HTTP/1.1\r\n"):
        with served.connect() as sock:
            sock.sendall(part)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with served.connect() as sock:
        sock.sendall(b".")
        assert whole(sock).startswith(b"HTTP/1.1 200 OK\r\n")


def test_one_that_never_stops_sending_is_closed(served: Served) -> None:
    def send_for_ever(sock: socket.socket) -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            sock.sendall(b"x" * 1024)

    with served.connect() as sock, pytest.raises(OSError, match=r"reset|Broken"):
        send_for_ever(sock)


def test_one_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "WRITE_TIMEOUT", 0.1)
    big = metrics.GaugeMetricFamily("big", "x" * 30_000_000, 1.0)
    served = Served(lambda: [big])
    try:
        with served.connect() as slow:
            slow.sendall(b".")
            time.sleep(0.5)
            try:
                assert len(whole(slow)) < 30_000_000
            except ConnectionResetError:
                pass
        monkeypatch.undo()
        with served.connect() as quick:
            quick.sendall(b".")
            assert len(whole(quick)) > 30_000_000
    finally:
        served.end()


def test_more_than_are_served_at_a_time_wait(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = [served.connect() for _ in range(metrics.MAX_SCRAPERS)]
    with served.connect() as sock:
        sock.sendall(b".")
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        for each in silent:
            each.close()
        sock.settimeout(10)
        assert whole(sock).startswith(b"HTTP/1.1 200 OK\r\n")


def answered(behave: Callable[[socket.socket], bytes], response: bytes = b"x" * 10) -> bytes:
    """Return what a scraper that does `behave` gets from a process that does nothing but answer it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname(), 10) as client:
            theirs, _ = listener.accept()
            thread = threading.Thread(target=metrics.answer, args=(theirs, response))
            thread.start()
            got = behave(client)
        thread.join()
    return got


def test_a_process_that_does_nothing_else_answers_one() -> None:
    def ask(client: socket.socket) -> bytes:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        return whole(client)

    assert answered(ask) == b"x" * 10
    assert answered(ask, b"x" * 10_000_000) == b"x" * 10_000_000


def test_it_answers_one_that_says_nothing_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "READ_TIMEOUT", 0.1)
    assert answered(whole) == b"x" * 10


def test_it_gives_up_one_that_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "WRITE_TIMEOUT", 0.1)

    def sit(client: socket.socket) -> bytes:
        client.sendall(b".")
        time.sleep(0.4)
        return b""

    assert answered(sit, b"x" * 30_000_000) == b""


def test_it_survives_one_that_resets() -> None:
    def reset(client: socket.socket) -> bytes:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return b""

    assert answered(reset) == b""
