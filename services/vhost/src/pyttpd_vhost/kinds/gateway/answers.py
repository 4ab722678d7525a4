"""The head of an application's answer (RFC 3875 section 6), as CGI, FastCGI and SCGI applications say it. Sans-I/O.

    Content-Type: text/plain            a document; `Status: 404 Not Found` if it isn't 200
    Location: /other?x=1                a local redirect, if it is all there is: the server answers as if the client had
                                        asked for that
    Location: https://a.example/        a client redirect, 302 unless `Status` says something else; with a document or
                                        without

Rules:
- Lines end with LF or CRLF. At least one of Content-Type, Location and Status is there (section 6.3). What section 6.3
  wants once, and Content-Length, may come again only if it says the same.
- A path in `Location` together with anything else is for the client: nothing of what was said gets lost that way, a
  cookie for example. So is "//host/path", which means another host to a browser.
- Instead of `Status` a first line may be one of HTTP ("HTTP/1.1 404 Not Found"), as PHP can be told to write and
  nginx takes it.
- Names and values are checked as all are (http/response.py): nothing in there can begin a new line. Folded lines
  (RFC 9112 section 5.2) and blanks before the colon are malformed.
- `Connection` and its kin are dropped, the other hop-by-hop fields are malformed: the framing is ours.
- The head has HEAD_LIMIT bytes and MAX_FIELDS fields at most. Its end is looked for in what is new, so that a byte at
  a time costs no more.
- An application says few heads that differ: short ones are remembered, with what they mean.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pyttpd_vhost.http.errors import ResponseError
from pyttpd_vhost.http.response import STATUS, Fields, status_code
from pyttpd_vhost.kinds.gateway.faults import BackendError, Fault, excerpt

#: A request's head may be as long at most; cookies and policies of the longest kind take a tenth of it.
HEAD_LIMIT = 65536
#: Nobody has so many to say.
MAX_FIELDS = 256
#: What may come once, in lower case.
ONCE = frozenset({"status", "content-type", "location", "content-length"})

#: The end of the last line, and an empty one; of a head without lines, that alone.
_END = re.compile(rb"(?:\A|\n)\r?\n")
#: How far into what was seen before an end may reach back.
_OVERLAP = 2
_PROTOCOL = re.compile(r"HTTP/[0-9](?:\.[0-9])? +(.*)")
_CODE = re.compile(r"[2-5][0-9][0-9]")


#: Heads that are remembered, and the longest of them: 32 KB of them at most. Full, it starts anew.
_MAX_REMEMBERED = 64
_LONGEST_REMEMBERED = 512


class Answer(NamedTuple):
    """A checked head. `local`: the path and query of a local redirect, else empty: then the rest means nothing."""

    status: str
    code: int
    fields: Fields
    local: str = ""


#: Immutable, so all threads may have them.
_remembered: dict[bytes, Answer] = {}


class HeadParser:
    """Finds the head in what an application writes."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: bytes | bytearray = b""

    def feed(self, data: bytes) -> tuple[Answer, bytes] | None:
        """Take some more; return the head and what follows it, None if it isn't complete. Raises BackendError."""
        if not self._seen:
            end = _END.search(data)
            if end is not None and end.start() <= _LONGEST_REMEMBERED:
                head = data[: end.start()]
                answer = _remembered.get(head)
                if answer is None:
                    answer = parse(head.decode("latin-1"))
                    if len(_remembered) >= _MAX_REMEMBERED:
                        _remembered.clear()
                    _remembered[head] = answer
                return answer, data[end.end() :]
            self._seen = bytearray()
        assert isinstance(self._seen, bytearray)
        seen = len(self._seen)
        self._seen += data
        end = _END.search(self._seen, max(0, seen - _OVERLAP))
        if (len(self._seen) if end is None else end.start()) > HEAD_LIMIT:
            raise BackendError(Fault.OVERSIZE, f"a head of more than {HEAD_LIMIT} bytes")
        if end is None:
            return None
        text = self._seen[: end.start()].decode("latin-1")
        rest = bytes(memoryview(self._seen)[end.end() :])
        return parse(text), rest

    def end(self) -> BackendError:
        """Return what is wrong if nothing more comes."""
        if not self._seen:
            return BackendError(Fault.EMPTY, "it ended without an answer")
        return BackendError(Fault.MALFORMED, f"its head has no end: {excerpt(bytes(self._seen))}")


def parse(text: str) -> Answer:
    """Return the head that `text` is, without the empty line at its end. Raises BackendError."""
    lines = text.split("\n") if text else []
    if len(lines) > MAX_FIELDS:
        raise BackendError(Fault.OVERSIZE, f"a head of more than {MAX_FIELDS} fields")
    said: dict[str, str] = {}
    headers: list[tuple[str, str]] = []
    if lines and (protocol := _PROTOCOL.fullmatch(lines[0].removesuffix("\r"))) is not None:
        said["status"] = protocol[1].strip(" ")
        del lines[0]
    for line in lines:
        name, colon, value = line.removesuffix("\r").partition(":")
        value = value.strip(" \t")
        if not colon:
            raise BackendError(Fault.MALFORMED, f"not a header field: {excerpt(line)}")
        lower = name.lower()
        if lower in ONCE:
            if said.setdefault(lower, value) != value:
                raise BackendError(Fault.MALFORMED, f"a second {name}: {excerpt(value)}")
            if lower == "status" or headers.count((name, value)):
                continue
            if [other for other, _ in headers if other.lower() == lower]:
                continue
        headers.append((name, value))
    return _answer(said, headers)


def _answer(said: dict[str, str], headers: list[tuple[str, str]]) -> Answer:
    location = said.get("location")
    if location is None and "content-type" not in said and "status" not in said:
        raise BackendError(Fault.MALFORMED, "neither Content-Type nor Location nor Status in its head")
    if location is not None and not location:
        raise BackendError(Fault.MALFORMED, "an empty Location")
    try:
        fields = Fields(headers)
        if "status" in said:
            status = said["status"]
            if _CODE.fullmatch(status):
                status = STATUS.get(int(status), f"{status} ")
            return Answer(status, status_code(status), fields)
    except ResponseError as error:
        raise BackendError(Fault.MALFORMED, str(error)) from None
    if location is None:
        return Answer(STATUS[200], 200, fields)
    if len(headers) == 1 and location[0] == "/" and location[:2] != "//":
        return Answer(STATUS[200], 200, fields, location)
    return Answer(STATUS[302], 302, fields)
