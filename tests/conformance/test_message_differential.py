"""Both engines, and h11 and llhttp by themselves, on whole messages. The rules and the lists: message_oracles.py."""

import pytest
from hypothesis import given, settings

from conformance.message_oracles import (
    LENIENT,
    STRICTER,
    Message,
    ask_h11,
    ask_llhttp,
    disagreement,
    read,
)
from conformance.messages import streams
from pyttpd_vhost.http.h11 import H11Engine
from pyttpd_vhost.http.llhttp import LlhttpEngine

_HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

#: For each listed difference a body that shows it, so that no entry stays when its parser has become stricter.
WITNESSES = [
    b"5 ;a\r\nhello\r\n0\r\n\r\n",
    b"5; a\r\nhello\r\n0\r\n\r\n",
    b"5;\r\nhello\r\n0\r\n\r\n",
    b"0000000000000005\r\nhello\r\n0\r\n\r\n",
    b"0;" + b"a" * 300 + b"\r\n\r\n",
    (b"1;" + b"a" * 200 + b"\r\nx\r\n") * 100 + b"0\r\n\r\n",
    b"0\r\nA: b\r\n c\r\n\r\n",
    b"0\r\nHost: b\r\n\r\n",
]


@settings(max_examples=400, deadline=None)
@given(streams(odd=False))
def test_valid_messages(data: bytes) -> None:
    assert disagreement(data) is None
    last = read(data, LlhttpEngine())
    assert (last.status, last.reason) == (0, "")
    assert last.messages
    assert not last.messages[-1].keep_alive or last.messages[-1].end == len(data)


@settings(max_examples=1500, deadline=None)
@given(streams())
def test_likely_messages(data: bytes) -> None:
    assert disagreement(data) is None


def test_every_byte_everywhere() -> None:
    data = _HEAD + b'5;a="b"\r\nhello\r\n0;c\r\nT: u\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n'
    for at in range(len(_HEAD), len(data)):
        for value in [*range(48), *b":;<?@A[\\]^_`a{|}~", 0x7F, 0x80, 0xA0, 0xFF]:
            for skip in (0, 1):
                changed = data[:at] + bytes([value]) + data[at + skip :]
                assert disagreement(changed) is None, changed


def test_each_listed_difference_exists() -> None:
    seen: dict[str, set[str]] = {"h11": set(), "llhttp": set()}
    shown = set()
    for body in WITNESSES:
        data = _HEAD + body
        assert disagreement(data) is None, body
        ours = read(data, LlhttpEngine())
        for name, alone in (("h11", ask_h11(data)), ("llhttp", ask_llhttp(data))):
            if ours.status and isinstance(alone, Message):
                seen[name].add(ours.reason)
            if not ours.status and not isinstance(alone, Message):
                shown |= {d for d in LENIENT if d.who == name and d.seen.search(data)}
    assert seen == {name: set(reasons) for name, reasons in STRICTER.items()}
    assert shown == {*LENIENT}


@pytest.mark.parametrize("engine", [LlhttpEngine(), H11Engine()], ids=["llhttp", "h11"])
def test_nothing_depends_on_what_was_read_before(engine: LlhttpEngine | H11Engine) -> None:
    """An engine is used for all connections of a thread: each kind of head after each other kind."""
    heads = [
        *(
            b"",
            b"Connection: close\r\n",
            b"Connection: keep-alive\r\n",
            b"Proxy-Connection: close\r\n",
            b"Upgrade: x\r\n",
        ),
        *(
            b"Connection: Upgrade\r\nUpgrade: x\r\n",
            b"Content-Length: 5\r\n",
            b"Transfer-Encoding: chunked\r\n",
        ),
        *(
            b"Expect: 100-continue\r\n",
            b"Expect: x\r\n",
            b"Keep-Alive: 5\r\n",
            b"Trailer: a\r\n",
            b"Content-Length: x\r\n",
        ),
    ]
    raws = [
        b"POST / HTTP/1.%d\r\nHost: a\r\n%b\r\n" % (minor, fields) for minor in (0, 1) for fields in heads
    ]
    alone = [read(raw, type(engine)()) for raw in raws]
    for first in raws:
        for raw, expected in zip(raws, alone, strict=True):
            read(first, engine)
            assert read(raw, engine) == expected, (first, raw)
