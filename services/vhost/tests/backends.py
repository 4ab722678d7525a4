"""Applications in other processes, played by threads: `Played` listens on a Unix socket and lets a function answer each
connection. And the other side of FastCGI's records and of SCGI's netstrings, written down once more.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pyttpd.config.kinds import FastcgiOptions, Mount, ScgiOptions

from pyttpd_vhost.execution.places import Place
from pyttpd_vhost.kinds.fastcgi.kind import FastcgiKind
from pyttpd_vhost.kinds.scgi import ScgiKind
from pyttpd_vhost.site import Site

HEADER = struct.Struct(">BBHHBx")
BEGIN, ABORT, END, PARAMS, STDIN, STDOUT, STDERR = range(1, 8)
#: What a test waits for comes within (s): far more than it takes, on a machine that does a lot else.
PATIENCE = 20.0
COMPLETE = b"\0\0\0\0\0\0\0\0"


def fastcgi(path: str, root: str = "/srv/app", **options: Any) -> Callable[[Site], FastcgiKind]:
    """Return what makes a site's kind of the application at `path`."""
    return lambda site: FastcgiKind(
        _mounted(FastcgiOptions(socket=path, root=root, **options), site), site, 0
    )


def scgi(path: str, **options: Any) -> Callable[[Site], ScgiKind]:
    return lambda site: ScgiKind(_mounted(ScgiOptions(socket=path, **options), site), site)


Options = TypeVar("Options", FastcgiOptions, ScgiOptions)


def _mounted(options: Options, site: Site) -> Options:
    site.share = replace(site.share, mounts=(Mount("/", options),))
    site.places = {"/": Place(0, options.socket or "")}
    return options


class Played:
    """An application that `answer` plays, once per connection, each in a thread of its own. Counts them."""

    def __init__(self, path: Path, answer: Callable[[socket.socket], None]) -> None:
        self.path = str(path)
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self.connections = 0
        self.fault: BaseException | None = None
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(sock)
            thread = threading.Thread(target=self._run, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self, sock: socket.socket) -> None:
        try:
            with sock:
                sock.settimeout(PATIENCE)
                self._answer(sock)
        except OSError:
            pass  # the server has gone: what many tests want
        except BaseException as fault:
            self.fault = fault

    def close(self) -> None:
        """End; raise what went wrong in `answer`."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        if self.fault is not None:
            raise self.fault


def record(type_: int, content: bytes = b"", *, id_: int = 1, padding: int = 0, version: int = 1) -> bytes:
    return HEADER.pack(version, type_, id_, len(content), padding) + content + bytes(padding)


def exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise ConnectionError("closed")
        data += piece
    return data


def records(sock: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Yield what the server says."""
    while True:
        _, type_, _, length, padding = HEADER.unpack(exactly(sock, HEADER.size))
        content = exactly(sock, length)
        exactly(sock, padding)
        yield type_, content


class Asked(NamedTuple):
    """One request as an application sees it."""

    keep: bool
    params: dict[str, str]
    body: bytes


def read_params(sock: socket.socket) -> tuple[bool, dict[str, str]]:
    """Read a FastCGI request up to its body."""
    keep, params = False, b""
    for type_, content in records(sock):
        if type_ == BEGIN:
            role, flags = struct.unpack(">HB5x", content)
            assert role == 1
            keep = bool(flags & 1)
        elif type_ == PARAMS and content:
            params += content
        else:
            assert (type_, content) == (PARAMS, b"")
            break
    return keep, dict(pairs(params))


def read_request(sock: socket.socket) -> Asked:
    """Read a FastCGI request."""
    keep, params = read_params(sock)
    body = b""
    for type_, content in records(sock):
        assert type_ == STDIN
        if not content:
            break
        body += content
    return Asked(keep, params, body)


def pairs(data: bytes) -> Iterator[tuple[str, str]]:
    at = 0

    def length() -> int:
        nonlocal at
        if data[at] < 128:
            at += 1
            return data[at - 1]
        at += 4
        return int(struct.unpack_from(">I", data, at - 4)[0]) & 0x7FFFFFFF

    while at < len(data):
        name, value = length(), length()
        yield data[at : at + name].decode("latin-1"), data[at + name : at + name + value].decode("latin-1")
        at += name + value


def answer(text: bytes) -> bytes:
    """A whole FastCGI answer."""
    return record(STDOUT, text) + record(STDOUT) + record(END, COMPLETE)


def read_netstring(sock: socket.socket) -> dict[str, str]:
    """Read an SCGI request up to its body."""
    length = b""
    while (digit := exactly(sock, 1)) != b":":
        length += digit
    parts = exactly(sock, int(length)).decode("latin-1").split("\0")
    assert exactly(sock, 1) == b"," and parts.pop() == ""
    assert parts[0] == "CONTENT_LENGTH"
    return dict(zip(parts[::2], parts[1::2], strict=True))
