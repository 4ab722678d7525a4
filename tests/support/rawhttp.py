"""A strict HTTP client on a socket that somebody else connected, for tests of what servers really send."""

from __future__ import annotations

import socket


class Answer:
    """One response, as a client reads it."""

    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes, *, whole: bool) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.whole = whole
        self.trailers: list[tuple[str, str]] = []

    def __getitem__(self, name: str) -> str:
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) == 1, (name, self.headers)
        return values[0]

    def __contains__(self, name: str) -> bool:
        return any(key.lower() == name.lower() for key, _ in self.headers)


class Client:
    """A strict HTTP client over a socket; never more lenient than it must be."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.data = b""

    def _more(self) -> bool:
        data = self.sock.recv(65536)
        self.data += data
        return bool(data)

    def _line(self) -> bytes:
        while b"\r\n" not in self.data:
            assert self._more(), f"the end in a line: {self.data!r}"
        line, _, self.data = self.data.partition(b"\r\n")
        assert b"\n" not in line
        assert b"\r" not in line
        return line

    def _exactly(self, count: int) -> bytes:
        while len(self.data) < count:
            assert self._more(), f"{count - len(self.data)} bytes of a body are missing"
        body, self.data = self.data[:count], self.data[count:]
        return body

    def _fields(self) -> list[tuple[str, str]]:
        fields = []
        while line := self._line():
            name, _, value = line.decode("latin-1").partition(": ")
            fields.append((name, value))
        return fields

    def close(self) -> None:
        """Say that nothing more comes."""
        self.sock.shutdown(socket.SHUT_WR)

    def answer(self, method: str = "GET") -> Answer:
        """Read one response."""
        version, status, _ = self._line().split(b" ", 2)
        assert version == b"HTTP/1.1"
        answer = Answer(int(status), self._fields(), b"", whole=True)
        assert not ("Content-Length" in answer and "Transfer-Encoding" in answer)
        if method == "HEAD" or answer.status in (204, 304) or answer.status < 200:
            pass
        elif "Transfer-Encoding" in answer:
            assert answer["Transfer-Encoding"] == "chunked"
            while size := int(self._line(), 16):
                answer.body += self._exactly(size)
                assert self._exactly(2) == b"\r\n"
            answer.trailers = self._fields()
        elif "Content-Length" in answer:
            answer.body = self._exactly(int(answer["Content-Length"]))
        else:
            assert answer["Connection"] == "close"
            while self._more():
                pass
            answer.body, self.data = self.data, b""
        return answer

    def at_end(self) -> bool:
        """Wait for the end of the connection. False: there are more bytes."""
        while not self.data:
            try:
                if not self._more():
                    return True
            except ConnectionResetError:
                raise AssertionError("reset instead of an orderly end") from None
        return False
