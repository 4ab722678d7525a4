"""What the vhost's two engines, and h11 and llhttp by themselves, make of a connection's bytes: heads, bodies, ends.

`read` is a vhost's reading without a socket: scanner, engine, decoder, one message after another. The rules:

- Both engines read the same messages, to the last byte, and refuse the same, with the same status.
- What an engine accepts, the two parsers by themselves accept as the same message with the same end, or the difference
  stands in LENIENT, with a reason why it is harmless.
- A body that we refuse and one of them accepts: our reason stands in STRICTER. (Heads: head_oracles.py.)
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

import h11
import httptools

from pyttpd.head import Refused, scan

from conformance.head_oracles import EMPTY_LINE, LIMIT
from pyttpd_vhost.http.chunked import State
from pyttpd_vhost.http.engine import CHUNKED, Engine, Fields
from pyttpd_vhost.http.errors import RequestError
from pyttpd_vhost.http.h11 import H11Engine
from pyttpd_vhost.http.llhttp import LlhttpEngine


class Difference(NamedTuple):
    """Who differs, where it must be seen in the bytes, and why that is as it should be."""

    who: str
    seen: re.Pattern[bytes]
    why: str


#: Where a parser by itself refuses what both our engines accept.
LENIENT = [
    Difference(
        "h11",
        re.compile(rb"(?:^|\n)[0-9A-Fa-f]+[ \t]+;"),
        "h11's grammar has no blanks before a chunk extension; RFC 9112 section 7.1.1 has, and wants them read",
    ),
    Difference(
        "llhttp",
        re.compile(rb"(?:^|\n)[0-9A-Fa-f]+(?:[ \t]|;.*?(?:[ \t]|\\|[\x80-\xff]))"),
        "llhttp has no blanks, and not all quoted characters, in chunk extensions; RFC 9112 section 7.1.1 has them",
    ),
]

#: Our reasons to refuse a body that a parser by itself accepts.
STRICTER = {
    "h11": {
        "malformed chunk size": "h11 takes twenty digits, blanks behind a size, and anything for an extension",
        "line in a chunked body too long": "a limit",
        "too much around too little data": "a limit",
        "malformed trailer": "h11 takes bare LF, folds, and control characters",
        "forbidden trailer": "h11 takes Content-Length and Host, and one good Transfer-Encoding",
    },
    "llhttp": {
        "malformed chunk size": "llhttp takes sixteen digits",
        "line in a chunked body too long": "a limit",
        "too much around too little data": "a limit",
        "forbidden trailer": "llhttp leaves trailers to its user",
    },
}


@dataclass
class Message:
    """One message, as somebody read it. `end`: the offset behind its last byte."""

    method: bytes
    target: bytes
    fields: Fields
    body: bytes
    end: int
    version: int = 0
    keep_alive: bool = False
    expect: bool = False
    trailers: Fields = field(default_factory=list)


@dataclass
class Reading:
    """All messages of a connection, and how it ends: a status and reason, or (0, "") when more was wanted."""

    messages: list[Message]
    status: int = 0
    reason: str = ""
    in_body: bool = False


def read(data: bytes, engine: Engine) -> Reading:
    """Read `data` as a vhost would, up to what ends the connection."""
    reading = Reading([])
    at = 0
    try:
        while at < len(data):
            head = scan(data[at:], LIMIT)
            if head is None:
                break
            request = engine.read(data[at:], head)
            message = Message(head.method, head.target, request.fields, b"", at + head.end)
            message.version, message.keep_alive, message.expect = (
                request.version,
                request.keep_alive,
                request.expect,
            )
            reading.in_body = True
            if not _read_body(data, engine, request.length, message):
                break
            reading.in_body = False
            reading.messages.append(message)
            at = message.end
            if not message.keep_alive:
                break
    except (Refused, RequestError) as refused:
        reading.status, reading.reason = refused.status, refused.reason
    return reading


def _read_body(data: bytes, engine: Engine, length: int, message: Message) -> bool:
    """Read the body into `message`. False: it isn't whole."""
    if length != CHUNKED:
        message.body = data[message.end : message.end + length]
        message.end += length
        return len(message.body) == length
    decoder = engine.chunked()
    while decoder.state is not State.DONE:
        piece, used = decoder.feed(data[message.end :], 7)
        if not used:
            return False
        message.body += piece
        message.end += used
    message.trailers = decoder.trailers
    return True


def ask_h11(data: bytes) -> Message | str:
    """The first message as h11 by itself reads it, or why not."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=10 * LIMIT)
    connection.receive_data(data)
    try:
        event = connection.next_event()
        if not isinstance(event, h11.Request):
            return "wants more"
        message = Message(event.method, event.target, event.headers.raw_items(), b"", 0)
        while isinstance(event := connection.next_event(), h11.Data):
            message.body += event.data
        if not isinstance(event, h11.EndOfMessage):
            return "wants more"
        message.trailers = event.headers.raw_items()
        message.end = len(data) - len(connection.trailing_data[0])
        return message
    except h11.RemoteProtocolError as error:
        return str(error) or "error"


class _Callbacks:
    def __init__(self) -> None:
        self.message = Message(b"", b"", [], b"", 0)
        self.in_trailers = False
        self.whole = False

    def on_url(self, part: bytes) -> None:
        self.message.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        fields = self.message.trailers if self.in_trailers else self.message.fields
        fields.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        self.in_trailers = True

    def on_body(self, part: bytes) -> None:
        self.message.body += part

    def on_message_complete(self) -> None:
        self.whole = True


def ask_llhttp(data: bytes) -> Message | str:
    """The first message as llhttp by itself reads it, or why not. Byte by byte: how else to find the end."""
    callbacks = _Callbacks()
    parser = httptools.HttpRequestParser(callbacks)
    message = callbacks.message
    for at in range(len(data)):
        try:
            parser.feed_data(data[at : at + 1])
        except httptools.HttpParserUpgrade:
            return (
                "upgraded"  # HTTP ends there for llhttp. The vhost gives it heads only, and ignores Upgrade.
            )
        except httptools.HttpParserError as error:
            return str(error) or "error"
        if callbacks.in_trailers and not message.method:
            message.method = parser.get_method()
        if callbacks.whole:
            message.end = at + 1
            return message
    return "wants more"


def disagreement(data: bytes) -> str | None:
    """None when all agree on `data`, or differ for a listed reason; else what is wrong."""
    ours, theirs = read(data, LlhttpEngine()), read(data, H11Engine())
    if wrong := _engines_differ(ours, theirs):
        return wrong
    at = 0
    for message in ours.messages:
        if data.startswith(EMPTY_LINE, at):
            at += len(EMPTY_LINE)  # the vhost spares its engines of it
        if wrong := _oracles_differ(data[at : message.end], message, len(data[at : message.end])):
            return wrong
        at = message.end
    if ours.in_body and ours.status:
        for name, seen in (("h11", ask_h11(data[at:])), ("llhttp", ask_llhttp(data[at:]))):
            if isinstance(seen, Message) and ours.reason not in STRICTER[name]:
                return f"{name} accepts a body that we refuse: {ours.reason}"
    return None


def _engines_differ(ours: Reading, theirs: Reading) -> str | None:
    for mine, other in zip(ours.messages, theirs.messages, strict=False):
        for message in (mine, other):  # h11 lower-cases the one value that it knows
            message.fields = [_lower(field) for field in message.fields]
        if mine != other:
            return f"the engines read different messages: {mine} and {other}"
    if len(ours.messages) != len(theirs.messages) or (ours.status, ours.in_body) != (
        theirs.status,
        theirs.in_body,
    ):
        counts = len(ours.messages), len(theirs.messages)
        return f"the engines read {counts} messages, and refuse with {ours.reason!r} and {theirs.reason!r}"
    return None


def _oracles_differ(data: bytes, message: Message, end: int) -> str | None:
    expected = Message(
        message.method, message.target, message.fields, message.body, end, trailers=message.trailers
    )
    for name, seen in (("h11", ask_h11(data)), ("llhttp", ask_llhttp(data))):
        if isinstance(seen, Message):
            seen.fields = [_lower(field) for field in seen.fields]
            if seen != expected:
                return f"{name} reads {seen}, we {expected}"
        elif seen != "upgraded" and not any(d.who == name and d.seen.search(data) for d in LENIENT):
            return f"{name} refuses what we accept: {seen}"
    return None


def _lower(field: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    name, value = field
    return (name, value.lower()) if name.lower() == b"transfer-encoding" else field
