"""The parts without a socket: the chunked decoder, the memory of heads, fields, dates, whose a name is."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

import pytest

from pyttpd.head import Head, Refused

from pyttpd_vhost.http import heads, response
from pyttpd_vhost.http.chunked import ChunkedDecoder, State
from pyttpd_vhost.http.engine import CHUNKED, Engine, Request
from pyttpd_vhost.http.errors import RequestError, ResponseError
from pyttpd_vhost.http.exchange import Exchange
from pyttpd_vhost.http.h11 import CheckedDecoder, H11Engine
from pyttpd_vhost.http.heads import HeadReader
from pyttpd_vhost.http.llhttp import LlhttpEngine
from pyttpd_vhost.http.response import Fields, Trailers, status_code
from pyttpd_vhost.http.stream import Stream
from pyttpd_vhost.site import Site
from support.heads import said

from .conftest import ListLog, close, make_share, serves

NEXT = b"GET / HTTP/1.1\r\n"


@pytest.fixture(params=[LlhttpEngine, H11Engine], ids=["llhttp", "h11"])
def engine(request: pytest.FixtureRequest) -> Engine:
    made: Engine = request.param()
    return made


# ---- chunked -------------------------------------------------------------------------------------------------------


def decode(raw: bytes, cuts: list[int], size: int) -> tuple[bytes, bytes]:
    """Decode `raw` as it would come in pieces cut at `cuts`; return the body and what is left."""
    decoder = ChunkedDecoder()
    body, ahead = b"", b""
    for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        ahead += raw[start:end]
        while decoder.state is not State.DONE:
            data, used = decoder.feed(ahead, size)
            ahead = ahead[used:]
            assert len(data) <= size
            body += data
            if not data:
                break
    assert decoder.state is State.DONE
    assert decoder.feed(ahead, size) == (b"", 0)
    return body, ahead


@pytest.mark.parametrize("seed", range(50))
def test_chunks_in_any_pieces(seed: int) -> None:
    rng = random.Random(seed)
    parts = [rng.randbytes(rng.choice((1, 2, 15, 16, 300))) for _ in range(rng.randrange(6))]
    raw = b"".join(
        b"%x%b\r\n%b\r\n" % (len(part), rng.choice((b"", b";a", b' ;a="b"', b";a=b;c")), part)
        for part in parts
    )
    raw += (
        rng.choice((b"0", b"000"))
        + b"\r\n"
        + rng.choice((b"", b"A: b\r\n", b"A:\r\nB: c\r\n"))
        + b"\r\n"
        + NEXT
    )
    cuts = sorted(rng.sample(range(len(raw)), rng.randrange(len(raw) - 1)))
    assert decode(raw, cuts, rng.choice((1, 7, 65536))) == (b"".join(parts), NEXT)


def test_no_verdict_changes_with_the_pieces() -> None:
    """What is refused whole is refused byte by byte, and the other way round."""
    rng = random.Random(1)
    alphabet = [b"0", b"1", b"a", b"\r\n", b"\r", b"\n", b";", b" ", b"x", b"\0", b":"]
    for _ in range(3000):
        raw = b"".join(rng.choices(alphabet, k=rng.randrange(12)))
        verdicts: list[tuple[State, bytes, bytes] | None] = []
        for step in (len(raw) or 1, 1):
            decoder = ChunkedDecoder()
            body, ahead = b"", b""
            try:
                for at in range(0, len(raw), step):
                    ahead += raw[at : at + step]
                    while (got := decoder.feed(ahead, 100))[1]:
                        body += got[0]
                        ahead = ahead[got[1] :]
                verdicts.append((decoder.state, body, ahead))
            except RequestError:
                verdicts.append(None)
        assert verdicts[0] == verdicts[1], raw


# ---- heads ---------------------------------------------------------------------------------------------------------


def head(extra: str = "", method: str = "GET", target: str = "/", version: str = "1.1") -> bytes:
    return f"{method} {target} HTTP/{version}\r\nHost: a.test\r\n{extra}\r\n".encode("latin-1")


def warm(*known: bytes, engine: Engine | None = None) -> HeadReader:
    """A reader that has seen these heads twice."""
    reader = HeadReader(engine or LlhttpEngine(), 32768)
    for data in (*known, *known):
        reader.read(data)
    return reader


def test_fields_are_remembered() -> None:
    reader = warm(head(target="/1"), head(target="/2"))
    first = reader.read(head(target="/a?b"))
    assert first is not None
    assert first.known is not None
    assert (first.method, first.target, first.path, first.query) == ("GET", b"/a?b", b"/a", b"b")
    second = reader.read(head(method="HEAD"))
    assert second is not None
    assert second is not first
    assert second.known is first.known
    assert second.fields == [(b"Host", b"a.test")]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # what follows isn't a field's
        (head(), head() + b"x"),
        (head(), head()[:-1]),
        # no field: it looks like one only behind an empty line
        (b"\r\n" + head(), b"GET /b HTTP/1.1\r\n" + head()),
        (b"\r\n" + head(), b"\r\n" + head()),
        # the version decides what fields there may be
        (head(version="1.0"), head()),
        (head(), head(version="1.0")),
        (b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"),
        # whose the request is: the target's, not the field's
        (head(target="http://b.test/"), head()),
        (head(), head(target="http://b.test/")),
        # other lines
        (head(), head(target="*", method="OPTIONS")),
        (head(), head(target="/#")),
        (head(), head(target="/%zz")),
        (head(), head(target="x")),
        (head(), head(target="a.test:80", method="CONNECT")),
        (head(), head(method="BREW")),
        (head(), head(method="G" * 40)),
        (head(), head(version="1.2")),
        (head(), head(target="/ x")),
        (head(), head().replace(b"1.1\r\n", b"1.1\n")),
        (head(), head(target="/" + "a" * 8192)),
        (head("A: " + "b" * 2000 + "\r\n"), head("A: " + "b" * 2000 + "\r\n", target="/" + "a" * 31000)),
        # a body, one that may be expected
        (head("Content-Length: 1\r\n"), head("Content-Length: 1\r\n")),
        (head("Content-Length: 0\r\n"), head("Content-Length: 0\r\n", method="POST")),
        (head("Connection: close\r\n"), head("Connection: close\r\n", method="DELETE")),
        (head("Upgrade: x\r\nConnection: upgrade\r\n"), head("Upgrade: x\r\nConnection: upgrade\r\n")),
        # several of one name
        (head("A: 1\r\nA: 2\r\n"), head("A: 1\r\nA: 2\r\n", target="/x")),
    ],
)
def test_what_is_remembered_changes_no_verdict(engine: Engine, before: bytes, after: bytes) -> None:
    fresh = HeadReader(engine, 32768)
    expected = said(fresh, after)
    reader = warm(before, engine=engine)
    assert said(reader, after) == expected
    assert said(reader, after) == expected
    assert said(reader, before) == said(fresh, before)


def test_short_heads_are_remembered(engine: Engine) -> None:
    reader = HeadReader(engine, 32768)
    reader.read(head())
    first = reader.read(head())
    assert first is not None
    assert first.kept is not None
    assert reader.read(head()) is first
    assert reader.read(head() + b"x") is not first  # something follows
    long = head("A: " + "b" * heads.MAX_HEAD + "\r\n")
    reader.read(long)
    assert reader.read(long) is not reader.read(long)
    with_body = head("Content-Length: 1\r\n")
    reader.read(with_body)
    second = reader.read(with_body)
    assert second is not None
    assert second.kept is None


def test_long_fields_are_not_remembered() -> None:
    for length, known in ((heads.MAX_FIELDS - 30, True), (heads.MAX_FIELDS + 1, False)):
        data = head("A: " + "b" * length + "\r\n")
        request = warm(data).read(data)
        assert request is not None
        assert (request.known is not None) is known


def test_h11_reads_all_of_it_each_time() -> None:
    request = warm(head(), engine=H11Engine()).read(head())
    assert request is not None
    assert request.known is None


def test_the_memory_is_bounded() -> None:
    reader = HeadReader(LlhttpEngine(), 32768)
    for number in range(heads.MAX_MEMORY * 3):
        for _ in range(3):
            request = reader.read(head(f"A: {number}\r\n", target=f"/{number}"))
            assert request is not None
            assert request.get(b"a") == b"%d" % number
        assert len(reader._once) <= 2 * heads.MAX_MEMORY
        assert len(reader._known) <= heads.MAX_MEMORY
        assert len(reader._heads) <= heads.MAX_MEMORY


@pytest.mark.parametrize(
    ("extra", "version", "keep_alive", "length", "expect"),
    [
        ("", "1.1", True, 0, False),
        ("", "1.0", False, 0, False),
        ("Connection: keep-alive\r\n", "1.0", True, 0, False),
        ("Connection: Keep-Alive, x\r\n", "1.0", True, 0, False),
        ("Connection: x, close\r\nConnection: keep-alive\r\n", "1.1", False, 0, False),
        ("Content-Length: 0\r\nExpect: 100-continue\r\n", "1.1", True, 0, False),
        ("Content-Length: 7\r\nExpect: 100-Continue\r\n", "1.1", True, 7, True),
        ("Content-Length: 7\r\nExpect: 100-continue\r\n", "1.0", False, 7, False),
        ("Transfer-Encoding: Chunked\r\n", "1.1", True, CHUNKED, False),
        ("Connection: upgrade\r\nUpgrade: websocket\r\n", "1.1", True, 0, False),
    ],
)
def test_framing(
    engine: Engine, extra: str, version: str, keep_alive: bool, length: int, expect: bool
) -> None:
    reader = HeadReader(engine, 32768)
    for _ in range(2):  # the engine is ready for the next head after any
        request = reader.read(head(extra, version=version) + b"rest")
        assert request is not None
        assert (request.keep_alive, request.length, request.expect) == (keep_alive, length, expect)
        assert request.end == len(head(extra, version=version))
        plain = reader.read(head())
        assert plain is not None
        assert plain.fields == [(b"Host", b"a.test")]


def test_headers_of_a_request(engine: Engine) -> None:
    request = HeadReader(engine, 32768).read(head("X-A: 1\r\nX-Empty:\r\nx-a:\t2 \r\n"))
    assert request is not None
    assert request.fields == [(b"Host", b"a.test"), (b"X-A", b"1"), (b"X-Empty", b""), (b"x-a", b"2")]
    assert request.get(b"x-a") == b"1, 2"
    assert request.get(b"x-empty") == b""
    assert request.get(b"x-none") is None


# ---- the head of a response ----------------------------------------------------------------------------------------


def test_fields() -> None:
    for _ in range(2):
        fields = Fields([("A", "b"), ("content-length", "5"), ("DATE", "x"), ("C", "d\te\xe9")])
        assert (fields.text, fields.length, fields.date) == ("A: b\r\nDATE: x\r\nC: d\te\xe9\r\n", 5, True)


def test_tables_of_checked_text_are_bounded() -> None:
    for number in range(response._MAX_LINES * 2):
        assert Fields([(f"X-{number}", "y")]).text == f"X-{number}: y\r\n"
        assert status_code(f"200 {number}") == 200
    assert len(response._lines) <= response._MAX_LINES
    assert len(response._names) <= response._MAX_CHECKED
    assert len(response._statuses) <= response._MAX_CHECKED
    with pytest.raises(ResponseError):
        status_code("200 \r\n")


# ---- whose a name is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("authority", "routed", "owned"),
    [
        ("a.test", "a.test", True),
        ("a.test", "x.wild.test", True),
        ("b.test", "a.test", False),
        ("b.test", "b.test", True),  # umaster has decided that it is ours: it is the default
        ("x.wild.test", "a.test", True),
        ("y.x.wild.test", "a.test", True),
        ("wild.test", "a.test", False),
        ("theirs.wild.test", "a.test", False),
        ("x.theirs.wild.test", "a.test", True),
        ("x.deep.wild.test", "a.test", False),
        ("y.x.deep.wild.test", "a.test", False),
        ("deep.wild.test", "a.test", True),
        ("", "a.test", True),
        ("[::1]", "a.test", False),
    ],
)
def test_owns(authority: str, routed: str, owned: bool) -> None:
    assert Site(make_share(), ListLog()).owns(authority, routed) is owned


def test_a_host_less_request_is_the_defaults() -> None:
    assert not Site(make_share(default=False), ListLog()).owns("", "a.test")


def test_load(tmp_path: Path) -> None:
    site = Site(make_share(**serves(tmp_path)), ListLog())
    site.load()
    assert type(site.kind).__name__ == "StaticKind"
    close(site)


def test_trailers() -> None:
    assert (
        Trailers([("X-Sum", "1"), ("Server-Timing", "a;dur=1")]).text
        == "X-Sum: 1\r\nServer-Timing: a;dur=1\r\n"
    )
    for name in ("Content-Length", "transfer-encoding", "Host", "Set-Cookie", "Trailer", "X Y"):
        with pytest.raises(ResponseError):
            Trailers([(name, "1")])
    with pytest.raises(ResponseError):
        Trailers([("X", "1\r\nY: 2")])


# ---- the second opinion: what the scanner refuses already, the engine refuses as well -------------------------------


@pytest.mark.parametrize(
    ("extra", "version", "status"),
    [
        ("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", 11, 400),
        ("Content-Length: 1\r\nContent-Length: 1\r\n", 11, 400),
        ("Content-Length: -1\r\n", 11, 400),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 11, (400, 501)),
        ("Transfer-Encoding: gzip, chunked\r\n", 11, (400, 501)),
        ("Transfer-Encoding: chunked\r\n", 10, 400),
        ("A : b\r\n", 11, 400),
        ("A: b\rc\r\n", 11, 400),
        ("A: b\0\r\n", 11, 400),
        ("A: b\r\n c\r\n", 11, 400),
        ("A: b\nc: d\r\n", 11, 400),
    ],
)
def test_the_engine_refuses_by_itself(
    engine: Engine, extra: str, version: int, status: int | tuple[int, ...]
) -> None:
    data = head(extra, version=f"1.{version - 10}")
    with pytest.raises(Refused) as refused:
        engine.read(data, Head(b"GET", b"/", version, "a.test", 0, len(data)))
    assert refused.value.status in (status if isinstance(status, tuple) else (status,))
    # and is as good as new
    assert engine.read(head(), Head(b"GET", b"/", 11, "a.test", 0, len(head()))).path == b"/"


@pytest.mark.parametrize(
    ("lie", "data"),
    [
        (Head(b"PUT", b"/", 11, "a.test", 0, 0), head()),
        (Head(b"GET", b"/x", 11, "a.test", 0, 0), head()),
        (Head(b"GET", b"/", 10, "a.test", 0, 0), head()),
        (Head(b"GET", b"/", 11, "a.test", 0, 0), head() + b"x"),
        (Head(b"GET", b"/", 11, "a.test", 0, 0), head()[:-2]),
    ],
)
def test_h11_must_read_what_the_scanner_has_read(lie: Head, data: bytes) -> None:
    with pytest.raises(Refused) as refused:
        H11Engine().read(data, lie._replace(end=len(data)))
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("state", "left", "data"),
    [(State.DATA, 5, b"hello"), (State.TRAILER, 0, b"\r\n"), (State.DATA_END, 0, b"\r\n")],
)
def test_h11_must_read_what_the_decoder_has_read(state: State, left: int, data: bytes) -> None:
    """A decoder that has lost its way is found out."""
    decoder = CheckedDecoder()
    decoder.state, decoder._left = state, left
    with pytest.raises(RequestError) as refused:
        decoder.feed(data, 100)
    assert refused.value.status == 400


def test_llhttp_refuses_methods_by_itself() -> None:
    engine = LlhttpEngine()
    data = head(method="FROB")
    with pytest.raises(Refused) as refused:
        engine.read(data, Head(b"FROB", b"/", 11, "a.test", 0, len(data)))
    assert refused.value.status == 501
    with pytest.raises(Refused) as refused:
        Request(Head(b"CONNECT", b"a.test:80", 11, "a.test", 80, 0), [], [])
    assert refused.value.status == 501


# ---- what a kind can do wrong ---------------------------------------------------------------------------------------


def test_an_exchange_holds_a_kind_to_its_rules(tmp_path: Path) -> None:
    site = Site(make_share(), ListLog())
    here, there = socket.socketpair()
    with here, there:
        exchange = Exchange(Stream(here, site), site, ("127.0.0.1", "1"))
        request = HeadReader(LlhttpEngine(), 32768).read(head())
        assert request is not None
        exchange.start(request, None, keep=True)
        fields = Fields([])
        with pytest.raises(ResponseError):
            exchange.write(b"x")
        with pytest.raises(ResponseError):
            exchange.end()
        exchange.respond("200 OK", 200, fields, b"x")
        (tmp_path / "file").write_bytes(b"x")
        fd = os.open(tmp_path / "file", os.O_RDONLY)
        with pytest.raises(ResponseError):
            exchange.respond("200 OK", 200, fields, b"x")
        with pytest.raises(ResponseError):
            exchange.begin("200 OK", 200, fields)
        with pytest.raises(ResponseError):
            exchange.write(b"x")
        with pytest.raises(ResponseError):
            exchange.send_file("200 OK", 200, fields, fd, 0, 1)
        with pytest.raises(OSError):
            os.fstat(fd)  # it was given away, so it was closed
        assert there.recv(1000).endswith(b"\r\n\r\nx")


class Recorder(Stream):
    """Notes what send(2) is told."""

    __slots__ = ("flags",)

    def send_whole(self, data: bytes, flags: int = 0) -> None:
        """See `Stream.send_whole`."""
        self.flags = flags
        super().send_whole(data, flags)


@pytest.mark.parametrize(
    ("keep", "last", "waits"), [(False, True, True), (True, True, False), (False, False, False)]
)
def test_only_a_last_word_waits_for_the_end_of_its_connection(keep: bool, last: bool, waits: bool) -> None:
    """What the kind does behind an answer may take its time, and what isn't ended isn't sent by its end."""
    site = Site(make_share(), ListLog())
    here, there = socket.socketpair()
    with here, there:
        stream = Recorder(here, site)
        exchange = Exchange(stream, site, ("127.0.0.1", "1"))
        request = HeadReader(LlhttpEngine(), 32768).read(head())
        assert request is not None
        exchange.start(request, None, keep=keep)
        exchange.respond("200 OK", 200, Fields([]), b"x", last=last)
        assert bool(stream.flags & socket.MSG_MORE) is waits
        assert there.recv(1000).endswith(b"\r\n\r\nx")
