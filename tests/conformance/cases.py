"""The conformance suite's table: raw requests, what must come back, and how the connection ends.

A row: its name, the bytes, the answers, the end. `head(line, *fields)` writes a head with CRLF at the end of each line
and after the last; what comes behind it is added as bytes. An answer is a status and, as far as it matters, the body
and headers (None: the header must not be there). What the paths do that the requests ask for is said in
services/vhost/tests/echo.py.

The end is one of:

    OPEN     a further request is served, so the boundary was where it should be
    CLOSED   FIN, and no further byte; never a reset
    WAITING  nothing more comes until the client says more: the test closes its side, and sees an end without a word
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

# A row is a line, as far as that goes.
# fmt: off


class End(enum.Enum):
    OPEN = enum.auto()
    CLOSED = enum.auto()
    WAITING = enum.auto()


OPEN, CLOSED, WAITING = End

#: The suite's server: what its limits are.
BODY_LIMIT = 1000
HEAD_LIMIT = 32768


@dataclass(frozen=True, slots=True)
class Expected:
    """One answer. `body` None: whatever it is."""

    status: int
    body: bytes | None = None
    headers: dict[str, str | None] = field(default_factory=dict)
    trailers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Case:
    """One row. `method` is that of all requests, for who reads the answers.

    `together`: makes sense only in one piece.
    """

    name: str
    raw: bytes
    answers: tuple[Expected, ...]
    end: End
    method: str = "GET"
    together: bool = False


def head(line: str, *fields: str) -> bytes:
    return "\r\n".join([line, *fields, "", ""]).encode("latin-1")


def answer(status: int, body: bytes | None = None, **headers: str | None) -> Expected:
    return Expected(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


def ok(body: bytes, **headers: str | None) -> Expected:
    return answer(200, body, **headers)


def get(*fields: str, line: str = "GET / HTTP/1.1") -> bytes:
    """A GET with a Host, and these fields."""
    return head(line, H, *fields)


def post(body: bytes, *fields: str, line: str = "POST /body HTTP/1.1") -> bytes:
    """A POST to who reads bodies."""
    return head(line, H, *fields) + body


def chunked(body: bytes) -> bytes:
    return post(body, "Transfer-Encoding: chunked")


H = "Host: a.test"
PROBE = head("GET /probe HTTP/1.1", H)
ROOT = ok(b"GET /")
PROBED = ok(b"GET /probe")
BAD = answer(400, b"400 Bad Request\n", Connection="close")

SECTIONS: dict[str, list[Case]] = {}


def section(title: str, *cases: Case) -> None:
    SECTIONS[title] = list(cases)


def good(name: str, raw: bytes, *answers: Expected, end: End = OPEN, **more: object) -> Case:
    return Case(name, raw, answers or (ROOT,), end, **more)  # type: ignore[arg-type]


def bad(name: str, raw: bytes, status: int = 400, **more: object) -> Case:
    """Refused: one answer, the end, and nothing of what follows is served."""
    refused = BAD if status == 400 else answer(status, Connection="close")
    return Case(name, raw + PROBE, (refused,), CLOSED, **more)  # type: ignore[arg-type]


section(
    "RFC 9112 9.3: persistence",
    good("1.1", get(), ok(b"GET /", Connection=None)),
    good("1.1, close", get("Connection: close"), ok(b"GET /", Connection="close"), end=CLOSED),
    good("close among others", get("Connection: x, Close"), end=CLOSED),
    good("close among empty ones", get("Connection: ,, close ,"), end=CLOSED),
    good("close behind tabs", get("Connection:\tx,\tclose\t"), end=CLOSED),
    good("close isn't x-close", get("Connection: x-close")),
    good("keep-alive isn't x-keep-alive", get("Connection: x-keep-alive", line="GET / HTTP/1.0"), end=CLOSED),
    good("close before keep-alive", get("Connection: close", "Connection: keep-alive"), end=CLOSED),
    good("close after keep-alive", get("Connection: keep-alive", "Connection: close"), end=CLOSED),
    good("close isn't closed", get("Connection: closed")),
    good("close isn't a comment's", get("X-Connection: close")),
    good("keep-alive said", get("Connection: keep-alive", "Keep-Alive: timeout=5")),
    good("proxy-connection is nothing", get("Proxy-Connection: close")),
    good("1.0", get(line="GET / HTTP/1.0"), ok(b"GET /", Connection="close"), end=CLOSED),
    good("1.0 without host", head("GET / HTTP/1.0"), ok(b"GET /", Connection="close"), end=CLOSED),
    good("1.0, keep-alive", head("GET / HTTP/1.0", H, "Connection: Keep-Alive"), ok(b"GET /", Connection="keep-alive")),
    good("1.0, keep-alive and close", head("GET / HTTP/1.0", H, "Connection: keep-alive, close"), end=CLOSED),
    good("1.0, proxy-connection", head("GET / HTTP/1.0", H, "Proxy-Connection: keep-alive"), end=CLOSED),
    good("after close nothing", get("Connection: close") + PROBE, end=CLOSED),
    good("after 1.0 nothing", get(line="GET / HTTP/1.0") + PROBE, end=CLOSED),
    good("pipeline", PROBE * 3, PROBED, PROBED, PROBED),
    good("long pipeline", PROBE * 50, *[PROBED] * 50),
    good("pipeline, then close", PROBE * 2 + get("Connection: close") + PROBE, PROBED, PROBED, ROOT, end=CLOSED),
    good("pipeline, then a fault", PROBE * 2 + head("GET / HTTP/1.1") + PROBE, PROBED, PROBED, BAD, end=CLOSED),
    good(
        "pipeline of bodies",
        (post(b"x", "Content-Length: 1") + PROBE) * 2,
        ok(b"POST /body x"),
        PROBED,
        ok(b"POST /body x"),
        PROBED,
    ),
    good(
        "pipeline of chunks",
        (chunked(b"1\r\nx\r\n0\r\n\r\n") + PROBE) * 2,
        ok(b"POST /body x"),
        PROBED,
        ok(b"POST /body x"),
        PROBED,
    ),
)

section(
    "RFC 9112 2.2: lines",
    good("empty line first", b"\r\n" + get()),
    good("empty line between", PROBE + b"\r\n" + PROBE, PROBED, PROBED),
    good("empty line after a body", post(b"x", "Content-Length: 1") + b"\r\n" + PROBE, ok(b"POST /body x"), PROBED),
    bad("two empty lines first", b"\r\n\r\n" + get()),
    bad("lf first", b"\n" + get()),
    bad("cr first", b"\r" + get()),
    bad("blank first", b" " + get()),
    bad("blank line first", b" \r\n" + get()),
    bad("blanks only", b"   \r\n\r\n"),
    bad("lf after the request line", b"GET / HTTP/1.1\nHost: a.test\r\n\r\n"),
    bad("cr after the request line", b"GET / HTTP/1.1\rHost: a.test\r\n\r\n"),
    bad("cr cr lf after the request line", b"GET / HTTP/1.1\r\r\nHost: a.test\r\n\r\n"),
    bad("lf after a field", b"GET / HTTP/1.1\r\nHost: a.test\nA: b\r\n\r\n"),
    bad("cr after a field", b"GET / HTTP/1.1\r\nHost: a.test\rA: b\r\n\r\n"),
    bad("lf for the empty line", b"GET / HTTP/1.1\r\nHost: a.test\r\n\n"),
    bad("cr for the empty line", b"GET / HTTP/1.1\r\nHost: a.test\r\n\rA: b\r\n\r\n"),
    bad("lf everywhere", b"GET / HTTP/1.1\nHost: a.test\n\n"),
    bad("blank before the first field", b"GET / HTTP/1.1\r\n Host: a.test\r\n\r\n"),
    bad("blank line before the first field", b"GET / HTTP/1.1\r\n \r\nHost: a.test\r\n\r\n"),
    bad("tab before the first field", b"GET / HTTP/1.1\r\n\tHost: a.test\r\n\r\n"),
    bad("garbage", bytes(range(256))),
    bad("tls", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    bad("a response", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    bad("the proxy protocol", b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n" + get()),
    bad("the proxy protocol, version 2", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12) + get()),
)

section(
    "RFC 9112 3: the request line",
    bad("no target", head("GET HTTP/1.1", H)),
    bad("empty target", head("GET  HTTP/1.1", H)),
    bad("no version", b"GET /\r\n"),
    bad("no version, but a blank", b"GET / \r\n\r\n"),
    bad("only a method", b"GET\r\n\r\n"),
    bad("no method", head(" / HTTP/1.1", H)),
    bad("two blanks before the target", head("GET  / HTTP/1.1", H)),
    bad("two blanks behind the target", head("GET /  HTTP/1.1", H)),
    bad("a blank at the end", head("GET / HTTP/1.1 ", H)),
    bad("something at the end", head("GET / HTTP/1.1 x", H)),
    bad("tabs", head("GET\t/\tHTTP/1.1", H)),
    bad("vertical tabs", head("GET\x0b/\x0bHTTP/1.1", H)),
    bad("a blank in the target", head("GET /a b HTTP/1.1", H)),
    bad("nul in the target", head("GET /\0 HTTP/1.1", H)),
    bad("cr in the target", head("GET /\r HTTP/1.1", H)),
    bad("bytes above 127 in the target", head("GET /caf\xc3\xa9 HTTP/1.1", H)),
    bad("http in lower case", head("GET / http/1.1", H)),
    bad("no protocol's name", head("GET / 1.1", H)),
    bad("another protocol", head("GET / RTSP/1.0", H)),
    bad("almost http", head("GET / HTTPS/1.1", H)),
    bad("no minor version", head("GET / HTTP/1", H)),
    bad("no minor version, but a dot", head("GET / HTTP/1.", H)),
    bad("leading zeros", head("GET / HTTP/01.1", H)),
    bad("two minor digits", head("GET / HTTP/1.10", H)),
    bad("three numbers", head("GET / HTTP/1.1.1", H)),
    bad("a blank in the version", head("GET / HTTP/ 1.1", H)),
    bad("a comma in the version", head("GET / HTTP/1,1", H)),
    bad("letters in the version", head("GET / HTTP/x.y", H)),
    bad("a signed version", head("GET / HTTP/+1.1", H)),
    bad("version 0.9", head("GET / HTTP/0.9", H), 505),
    bad("version 1.2", head("GET / HTTP/1.2", H), 505),
    bad("version 2.0", head("GET / HTTP/2.0", H), 505),
    bad("version 3.0", head("GET / HTTP/3.0", H), 505),
    bad("version 9.9", head("GET / HTTP/9.9", H), 505),
    bad("http/2's preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    bad("unknown method", head("FROB / HTTP/1.1", H), 501),
    bad("method in lower case", head("get / HTTP/1.1", H), 501),
    bad("method with a prefix", head("XGET / HTTP/1.1", H), 501),
    bad("longest method", head("A" * 32 + " / HTTP/1.1", H), 501),
    bad("method too long", head("A" * 5000 + " / HTTP/1.1", H), 501),
    bad("method that is no token", head("G@T / HTTP/1.1", H)),
    bad("method with a colon", head("GET: / HTTP/1.1", H)),
    bad("method in brackets", head("[GET] / HTTP/1.1", H)),
    bad("method with a nul", head("GET\0 / HTTP/1.1", H)),
    *(
        good(f"method {method}", head(f"{method} / HTTP/1.1", H), ok(f"{method} /".encode()))
        for method in ("DELETE", "OPTIONS", "PATCH", "POST", "PUT", "TRACE", "PROPFIND", "REPORT", "M-SEARCH", "QUERY")
    ),
    good("8000 bytes", head("GET /" + "a" * 7986 + " HTTP/1.1", H), ok(b"GET /" + b"a" * 7986)),
    good("the longest line", head("GET /" + "a" * 8176 + " HTTP/1.1", H), ok(b"GET /" + b"a" * 8176)),
    bad("line a byte too long", head("GET /" + "a" * 8177 + " HTTP/1.1", H), 414),
    bad("line too long", head("GET /" + "a" * 40000 + " HTTP/1.1", H), 414),
)

section(
    "RFC 9112 3.2: targets",
    good("query", head("GET /a?b=c?d HTTP/1.1", H), ok(b"GET /a?b=c?d")),
    good("empty query", head("GET /a? HTTP/1.1", H), ok(b"GET /a")),
    good("encoded", head("GET /%41%2f%3F HTTP/1.1", H), ok(b"GET /%41%2f%3F")),
    good("what browsers leave as it is", head('GET /|^{}[]`"?<>\\%zz HTTP/1.1', H), ok(b'GET /|^{}[]`"?<>\\%zz')),
    good("all characters of a path", head("GET /-._~!$&'()*+,;=:@ HTTP/1.1", H), ok(b"GET /-._~!$&'()*+,;=:@")),
    good("two slashes", head("GET //user@host/a HTTP/1.1", H), ok(b"GET //user@host/a")),
    good("dots", head("GET /a/../b HTTP/1.1", H), ok(b"GET /a/../b")),
    good("a url in the query", head("GET /?u=http://b.test/ HTTP/1.1", H), ok(b"GET /?u=http://b.test/")),
    good("absolute", head("GET http://a.test/x?y HTTP/1.1", H), ok(b"GET /x?y")),
    good("absolute, in capitals", head("GET HTTP://A.TEST/x HTTP/1.1", H), ok(b"GET /x")),
    good("absolute, with port", head("GET http://a.test:80/x HTTP/1.1", H), ok(b"GET /x")),
    good("absolute, with an empty port", head("GET http://a.test:/x HTTP/1.1", H), ok(b"GET /x")),
    good("absolute overrides host", head("GET http://a.test/x HTTP/1.1", "Host: b.test"), ok(b"GET /x")),
    good("absolute, 1.0", head("GET http://a.test/x HTTP/1.0"), ok(b"GET /x"), end=CLOSED),
    good("absolute without path", head("GET http://a.test HTTP/1.1", H)),
    good("absolute with a query only", head("GET http://a.test?x=/ HTTP/1.1", H), ok(b"GET /?x=/")),
    bad("absolute, another host", head("GET http://b.test/ HTTP/1.1", H), 421),
    bad("absolute without host", head("GET http://a.test/ HTTP/1.1")),
    bad("absolute with a malformed host", head("GET http://a.test/ HTTP/1.1", "Host: a b")),
    bad("absolute, with user", head("GET http://u:p@a.test/ HTTP/1.1", H)),
    bad("absolute, empty host", head("GET http:///x HTTP/1.1", H)),
    bad("absolute, odd port", head("GET http://a.test:x/ HTTP/1.1", H)),
    bad("absolute, one slash", head("GET http:/a.test HTTP/1.1", H)),
    bad("absolute, https", head("GET https://a.test/ HTTP/1.1", H), 421),
    bad("absolute, another scheme", head("GET ftp://a.test/ HTTP/1.1", H)),
    bad("absolute, fragment", head("GET http://a.test/#x HTTP/1.1", H)),
    good("asterisk", head("OPTIONS * HTTP/1.1", H), ok(b"OPTIONS *")),
    good("options, absolute", head("OPTIONS http://a.test HTTP/1.1", H), ok(b"OPTIONS /")),
    bad("asterisk, get", head("GET * HTTP/1.1", H)),
    bad("asterisk, m-search", head("M-SEARCH * HTTP/1.1", H)),
    bad("asterisk and more", head("OPTIONS ** HTTP/1.1", H)),
    bad("asterisk with query", head("OPTIONS *?a HTTP/1.1", H)),
    bad("fragment", head("GET /a#b HTTP/1.1", H)),
    bad("relative", head("GET a HTTP/1.1", H)),
    bad("dots alone", head("GET ../../etc/passwd HTTP/1.1", H)),
    bad("query alone", head("GET ?a HTTP/1.1", H)),
    bad("backslash", head("GET /a\\b HTTP/1.1", H)),
    bad("broken encoding", head("GET /%zz HTTP/1.1", H)),
    bad("broken encoding at the end", head("GET /% HTTP/1.1", H)),
    bad("authority", head("GET a.test:80 HTTP/1.1", H)),
    bad("connect", head("CONNECT a.test:80 HTTP/1.1", "Host: a.test:80"), 501),
    bad("connect, 1.0", head("CONNECT a.test:80 HTTP/1.0"), 501),
    bad("connect, a length", head("CONNECT a.test:80 HTTP/1.1", H, "Content-Length: 3") + b"abc", 501),
    bad("connect without port", head("CONNECT a.test HTTP/1.1", H)),
    bad("connect, port 0", head("CONNECT a.test:0 HTTP/1.1", H)),
    bad("connect, a path", head("CONNECT / HTTP/1.1", H)),
)

section(
    "RFC 9112 3.2, 9110 7.2: Host",
    good("in capitals", head("GET / HTTP/1.1", "HOST: A.TEST")),
    good("with port", head("GET / HTTP/1.1", "Host: a.test:8080")),
    good("with an empty port", head("GET / HTTP/1.1", "Host: a.test:")),
    good("with a final dot", head("GET / HTTP/1.1", "Host: a.test.")),
    good("in blanks", head("GET / HTTP/1.1", "Host:\t a.test \t")),
    good("without a blank", head("GET / HTTP/1.1", "Host:a.test")),
    good("last", head("GET / HTTP/1.1", "A: b", "C: d", H)),
    good("wildcard", head("GET / HTTP/1.1", "Host: x.wild.test")),
    good("underscores", head("GET / HTTP/1.1", "Host: a_b.wild.test")),
    good("the longest", head("GET / HTTP/1.1", "Host: " + ("a" * 60 + ".") * 4 + "wild.test")),
    bad("too long", head("GET / HTTP/1.1", "Host: " + ("a" * 60 + ".") * 4 + "wild.test." + "a")),
    bad("another", head("GET / HTTP/1.1", "Host: b.test"), 421),
    bad("another, 1.0", head("GET / HTTP/1.0", "Host: b.test"), 421),
    bad("another's", head("GET / HTTP/1.1", "Host: theirs.wild.test"), 421),
    bad("another's wildcard", head("GET / HTTP/1.1", "Host: x.deep.wild.test"), 421),
    bad("ipv6 that isn't ours", head("GET / HTTP/1.1", "Host: [::1]:8080"), 421),
    good("another later", PROBE + head("GET / HTTP/1.1", "Host: b.test") + PROBE, PROBED, answer(421), end=CLOSED),
    bad("none", head("GET / HTTP/1.1")),
    bad("none, with fields", head("GET / HTTP/1.1", "A: b", "Hosts: a.test")),
    bad("two", head("GET / HTTP/1.1", H, H)),
    bad("two, not side by side", head("GET / HTTP/1.1", H, "A: b", "host: b.test")),
    bad("two, 1.0", head("GET / HTTP/1.0", H, H)),
    bad("empty", head("GET / HTTP/1.1", "Host:")),
    bad("empty, 1.0", head("GET / HTTP/1.0", "Host: ")),
    *(
        bad(f"malformed: {value!a}", head("GET / HTTP/1.1", f"Host: {value}"))
        for value in (
            *("a.test, b.test", "a.test b.test", "a.test/", "a.test/x", "u@a.test", "a.test:x", "a.test:80:80"),
            *("a.test:0", "a.test:65536", "a.test:-1", "a.test:+80", "http://a.test", "a.test?x", "a.test#x", "###"),
            *("a..test", ".a.test", ".", ":80", "a%2etest", "a;b", "a\\b", '"a.test"', "a\xe9.test", "a\0.test"),
            *("[::1", "::1", "[::1]x", "[::g]", "[v1.x]", "[fe80::1%25lo]", "1.2.3", "256.1.1.1", "0x7f.1", "a" * 64),
        )
    ),
)

section(
    "RFC 9112 5, 9110 5.5: fields",
    good("empty value", get("A:")),
    good("blank value", get("A: \t ")),
    good("odd name", get("!#$%&'*+-.^_`|~0aZ: b")),
    good("bytes above 127 in a value", get("A: D\xfcsseldorf \xff")),
    good("every visible character", get("A: " + "".join(map(chr, range(0x20, 0x7F))))),
    good("tab in a value", get("A: b\tc")),
    good("values are trimmed", head("GET /fields HTTP/1.1", H, "A: \t b c \t"), ok(b"Host=a.test;A=b c;")),
    good("names stay as sent", head("GET /fields HTTP/1.1", H, "x-Ab_c: d"), ok(b"Host=a.test;x-Ab_c=d;")),
    good("several of a name", head("GET /fields HTTP/1.1", H, "A: b", "a: c"), ok(b"Host=a.test;A=b;a=c;")),
    bad("two content types", get("Content-Type: a/b", "content-type: a/b")),
    bad("no colon", get("nocolon")),
    bad("no name", get(": b")),
    bad("blank before the colon", get("A : b")),
    bad("tab before the colon", get("A\t: b")),
    bad("blank in the name", get("A B: c")),
    bad("tab in the name", get("Content\tLength: 1")),
    bad("blank before the name", get(" A: b")),
    bad("fold", get("A: b\r\n c")),
    bad("fold, tab", get("A: b\r\n\tc")),
    bad("fold, empty", get("A:\r\n b")),
    bad("fold, only blanks", get("A: b\r\n ")),
    bad("bracket in the name", get("A[]: b")),
    bad("at sign in the name", get("Fo@: b")),
    bad("slash in the name", get("A/B: c")),
    bad("parenthesis in the name", get("A(: c")),
    bad("byte above 127 in the name", get("X-T\xc3\xabst: b")),
    bad("nul in the name", get("A\0: b")),
    bad("cr before the name", get("\rA: b")),
    bad("cr in the name", get("A\r: b")),
    *(
        bad(f"control character {code:#04x}", get(f"A: b{chr(code)}c"))
        for code in (*range(1, 9), 11, 12, *range(14, 32), 127)
    ),
    bad("nul in a value", get("A: b\0c")),
    bad("cr in a value", get("A: b\rc")),
    bad("cr at the end of a value", get("A: b\r")),
    bad("lf in a value", get("A: b\nc: d")),
    bad("nul after a value", get("A: b\0")),
    bad("escape sequences", get("A: \x1b[31mred")),
    good("128 fields", get(*["A: b"] * 127)),
    bad("129 fields", get(*["A: b"] * 128), 431),
    bad("10,000 fields", get(*["A: b"] * 10000), 431),
    good("a long value", get("A: " + "a" * 30000)),
    good("the largest head", get("A: " + "a" * (HEAD_LIMIT - len(get("A: "))))),
    bad("head a byte too large", get("A: " + "a" * (HEAD_LIMIT - len(get("A: ")) + 1)), 431),
    bad("head too large", get("A: " + "a" * 40000), 431),
    bad("name too long", get("a" * 40000 + ": b"), 431),
)

section(
    "RFC 9112 6.2: Content-Length",
    good("body", post(b"hello", "Content-Length: 5"), ok(b"POST /body hello")),
    good("empty", post(b"", "Content-Length: 0"), ok(b"POST /body ")),
    good("none is none", post(b""), ok(b"POST /body ")),
    good("zeros in front", post(b"hello", "Content-Length: 005"), ok(b"POST /body hello")),
    good(
        "no option of the connection",
        post(b"hello", "Content-Length: 5", "Connection: content-length"),
        ok(b"POST /body hello"),
    ),
    good("not octal", post(b"a" * 11, "Content-Length: 011"), ok(b"POST /body " + b"a" * 11)),
    good("in blanks", post(b"hello", "Content-Length: \t5 \t"), ok(b"POST /body hello")),
    good("in capitals", post(b"hello", "CONTENT-LENGTH: 5"), ok(b"POST /body hello")),
    good("1.0", post(b"hello", "Content-Length: 5", line="POST /body HTTP/1.0"), ok(b"POST /body hello"), end=CLOSED),
    good("get", head("GET /body HTTP/1.1", H, "Content-Length: 2") + b"hi", ok(b"GET /body hi")),
    good("options", head("OPTIONS /body HTTP/1.1", H, "Content-Length: 2") + b"hi", ok(b"OPTIONS /body hi")),
    good("any bytes", post(bytes(range(256)), "Content-Length: 256"), ok(b"POST /body " + bytes(range(256)))),
    good("a request in the body", post(PROBE, f"Content-Length: {len(PROBE)}"), ok(b"POST /body " + PROBE)),
    good(
        "not read",
        head("POST / HTTP/1.1", H, "Content-Length: 5") + b"hello" + PROBE,
        ok(b"POST /"),
        PROBED,
        together=True,
    ),
    good(
        "a request in a body that isn't read",
        head("GET / HTTP/1.1", H, f"Content-Length: {len(PROBE)}") + PROBE + PROBE,
        ROOT,
        PROBED,
        together=True,
    ),
    good("more than that is a request", post(b"x", "Content-Length: 0"), ok(b"POST /body "), end=WAITING),
    good("underscores are no length", post(b"", "Content_Length: 5"), ok(b"POST /body ")),
    good("not all of it", post(b"hell", "Content-Length: 5"), answer(400), end=WAITING),
    bad("twice, other", post(b"hello", "Content-Length: 5", "Content-Length: 4")),
    bad("twice, the same", post(b"hello", "Content-Length: 5", "Content-Length: 5")),
    bad("twice, once malformed", post(b"hello", "Content-Length: 5", "Content-Length: x")),
    bad("twice, not side by side", post(b"hello", "Content-Length: 5", "A: b", "content-length: 5")),
    *(
        bad(f"malformed: {value!a}", post(b"hello", f"Content-Length: {value}"))
        for value in (
            *("5, 5", "5,5", "5, 4", "5,", ",5", "5;", "5 5", "5\t5", "+5", "-5", "-0", "- 5", "5-", "+0", "--5"),
            *(
                "0x5",
                "0b1",
                "0o5",
                "5h",
                "5.0",
                "5e0",
                "1_0",
                "'5'",
                '"5"',
                "(5)",
                "five",
                "",
                "\xb2",
                "\xd9\xa5",
                "5\0",
            ),
            *("5\x0b", "\x0b5", "\x0c5", "5\r", "9" * 19, "18446744073709551621", "9" * 100, "0" * 18 + "5", "NaN"),
        )
    ),
    bad("blank before the colon", post(b"hello", "Content-Length : 5")),
    bad("folded", post(b"hello", "Content-Length:\r\n 5")),
    bad("blank before the name", post(b"hello", " Content-Length: 5")),
    bad("over the limit", post(b"x" * 1001, "Content-Length: 1001"), 413),
    bad("far over the limit", post(b"x", "Content-Length: 999999999999999999"), 413),
    bad("over the limit, not read", head("GET / HTTP/1.1", H, "Content-Length: 1001") + b"x" * 1001, 413),
)

section(
    "RFC 9112 6.1, 6.3: Transfer-Encoding",
    good("chunked", chunked(b"5\r\nhello\r\n0\r\n\r\n"), ok(b"POST /body hello")),
    good("in capitals", post(b"0\r\n\r\n", "TRANSFER-ENCODING: CHUNKED"), ok(b"POST /body ")),
    good("in blanks", post(b"0\r\n\r\n", "Transfer-Encoding: \t chunked  "), ok(b"POST /body ")),
    good("get", head("GET /body HTTP/1.1", H, "Transfer-Encoding: chunked") + b"0\r\n\r\n", ok(b"GET /body ")),
    good(
        "not read",
        head("POST / HTTP/1.1", H, "Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n" + PROBE,
        ok(b"POST /"),
        PROBED,
        together=True,
    ),
    good(
        "no option of the connection",
        post(b"1\r\nx\r\n0\r\n\r\n", "Transfer-Encoding: chunked", "Connection: transfer-encoding"),
        ok(b"POST /body x"),
    ),
    bad("with a length", post(b"0\r\n\r\n", "Content-Length: 5", "Transfer-Encoding: chunked")),
    bad("with a length behind", post(b"0\r\n\r\n", "Transfer-Encoding: chunked", "Content-Length: 5")),
    bad(
        "with a length, not side by side", post(b"0\r\n\r\n", "Content-Length: 5", "A: b", "Transfer-Encoding: chunked")
    ),
    bad("with length 0", post(b"0\r\n\r\n", "Content-Length: 0", "Transfer-Encoding: chunked")),
    bad("identity with a length", post(b"hello", "Transfer-Encoding: identity", "Content-Length: 5")),
    bad("twice", post(b"0\r\n\r\n", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked")),
    bad("twice, gzip first", post(b"0\r\n\r\n", "Transfer-Encoding: gzip", "Transfer-Encoding: chunked"), 400),
    bad("1.0", post(b"0\r\n\r\n", "Transfer-Encoding: chunked", line="POST /body HTTP/1.0")),
    bad(
        "1.0, keep-alive",
        post(b"0\r\n\r\n", "Transfer-Encoding: chunked", "Connection: keep-alive", line="POST / HTTP/1.0"),
    ),
    bad("gzip, chunked", post(b"0\r\n\r\n", "Transfer-Encoding: gzip, chunked"), 501),
    bad("cow, chunked", post(b"0\r\n\r\n", "Transfer-Encoding: cow, chunked"), 501),
    *(
        bad(f"malformed: {value!a}", post(b"0\r\n\r\n", f"Transfer-Encoding: {value}"))
        for value in (
            *("gzip", "identity", "xchunked", "chunkedx", "chunk", "chunked, gzip", "chunked, identity", "chunked,"),
            *(
                "chunked, chunked",
                ", chunked",
                ",chunked",
                "",
                " ",
                "chunked;a=b",
                '"chunked"',
                "'chunked'",
                "x y, chunked",
            ),
            *(
                "chunked chunked",
                "chun\xa0ked",
                "\xffchunked",
                "chunked\x00",
                "\x0bchunked",
                "\x0cchunked",
                "chunked\r",
            ),
            *(
                "chunked\t",
                "chunked \t",
                "chunked\t ",
                "\nchunked",
                "\r\n chunked",
                "chunked\x1f",
                "[chunked]",
                "chunked\t,",
                "gzip, , gzip",
                "ch\u0075nked\xad",
            ),
        )
    ),
    bad("blank before the colon", post(b"0\r\n\r\n", "Transfer-Encoding : chunked")),
    bad("blank before the name", post(b"0\r\n\r\n", " Transfer-Encoding: chunked")),
    bad("blank in the name", post(b"0\r\n\r\n", "Transfer Encoding: chunked")),
    bad("byte above 127 in the name", post(b"0\r\n\r\n", "Transf\x82r-Encoding: chunked")),
    bad("behind a cr", post(b"0\r\n\r\n", "X: X\rTransfer-Encoding: chunked")),
    bad("behind a lf", post(b"0\r\n\r\n", "X: X\nTransfer-Encoding: chunked")),
    good("underscore", post(b"5\r\nab", "Transfer_Encoding: chunked", "Content-Length: 5"), ok(b"POST /body 5\r\nab")),
    good(
        "content-encoding",
        post(b"5\r\nab", "Content-Encoding: chunked", "Content-Length: 5"),
        ok(b"POST /body 5\r\nab"),
    ),
    bad(
        "smuggled: length and chunks",
        post(b"0\r\n\r\n" + PROBE, f"Content-Length: {5 + len(PROBE)}", "Transfer-Encoding: chunked"),
    ),
    bad(
        "smuggled: chunks and length",
        post(b"2a\r\n" + PROBE + b"\r\n0\r\n\r\n", "Transfer-Encoding: chunked", "Content-Length: 4"),
    ),
    bad("smuggled: two codings", post(b"0\r\n\r\n" + PROBE, "Transfer-Encoding: chunked", "Transfer-Encoding: x")),
)

section(
    "RFC 9112 7.1: chunks",
    good("two", chunked(b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"), ok(b"POST /body hello world")),
    good("none", chunked(b"0\r\n\r\n"), ok(b"POST /body ")),
    good(
        "hexadecimal",
        chunked(b"A\r\n0123456789\r\nb\r\n0123456789a\r\n0\r\n\r\n"),
        ok(b"POST /body 01234567890123456789a"),
    ),
    good("zeros in front", chunked(b"0005\r\nhello\r\n000\r\n\r\n"), ok(b"POST /body hello")),
    good("line ends as data", chunked(b"4\r\n\r\n\r\n\r\n0\r\n\r\n"), ok(b"POST /body \r\n\r\n")),
    good("a request as data", chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (len(PROBE), PROBE)), ok(b"POST /body " + PROBE)),
    *(
        good(
            f"extension {extension.decode()}",
            chunked(b"5%b\r\nhello\r\n0%b\r\n\r\n" % (extension, extension)),
            ok(b"POST /body hello"),
        )
        for extension in (
            *(
                b";a",
                b";a=b",
                b";a;b=c;d",
                b";chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
            ),
            *(b';a="b c"', b'; a="\\"b\\\\;"', b"; hello=there; b", b';a=""', b";!#$%&'*+-.^_`|~=0"),
        )
    ),
    good(
        "extension with blanks",
        chunked(b'5 ; a = "b"\t;c\r\nhello\r\n0 ;d\r\n\r\n'),
        ok(b"POST /body hello"),
    ),
    good(
        "extensions with blanks between chunks that look like some",
        chunked(b'4 ; one ; two\r\n ;\t;\r\n3;three\r\n4 ;\r\n5;a="b ;c"\r\n6 ;\r\n\r\n0\r\n\r\n'),
        ok(b"POST /body  ;\t;4 ;6 ;\r\n"),
    ),
    *(
        bad(f"malformed: {chunks!a}", chunked(chunks))
        for chunks in (
            *(b"+1\r\nx\r\n0\r\n\r\n", b"-1\r\nx\r\n0\r\n\r\n", b"0x1\r\nx\r\n0\r\n\r\n", b"1_0\r\nx\r\n0\r\n\r\n"),
            *(b"\r\nx\r\n0\r\n\r\n", b"1 \r\nx\r\n0\r\n\r\n", b" 1\r\nx\r\n0\r\n\r\n", b"\t1\r\nx\r\n0\r\n\r\n"),
            *(b"1\t\r\nx\r\n0\r\n\r\n", b"g\r\nx\r\n0\r\n\r\n", b"1g\r\nx\r\n0\r\n\r\n", b"1.0\r\nx\r\n0\r\n\r\n"),
            *(
                b"1" * 16 + b"\r\nx\r\n0\r\n\r\n",
                b"f" * 17 + b"\r\nx",
                b"\xd9\xa1\r\nx\r\n0\r\n\r\n",
                b"1\0\r\nx\r\n0\r\n\r\n",
            ),
            *(
                b"1\nx\r\n0\r\n\r\n",
                b"1\r\nx\n0\r\n\r\n",
                b"1\r\nx\r\n0\n\r\n",
                b"1\r\nx\r\n0\r\n\n",
                b"1\rx\r\n0\r\n\r\n",
            ),
            *(
                b"1\r\r\nx\r\n0\r\n\r\n",
                b"1\r\nx\r0\r\n\r\n",
                b"1\r\nx\r\r\n0\r\n\r\n",
                b"1\r\nx0\r\n\r\n",
                b"1\r\nxy\r\n0\r\n\r\n",
            ),
            *(b"2\r\nx\r\n0\r\n\r\n", b"1\r\nx\r\n\r\n0\r\n\r\n", b"3\r\nfoo\r\n\r\n", b"1 x\r\nx\r\n0\r\n\r\n"),
            *(b"1;\r\nx\r\n0\r\n\r\n", b"1;;\r\nx\r\n0\r\n\r\n", b"1;a=\r\nx\r\n0\r\n\r\n", b"1;=a\r\nx\r\n0\r\n\r\n"),
            *(
                b"1;a[=x\r\nx\r\n0\r\n\r\n",
                b'1;a="b\r\nx\r\n0\r\n\r\n',
                b'1;a="b"c\r\nx\r\n0\r\n\r\n',
                b"1;a \r\nx\r\n0\r\n\r\n",
            ),
            *(
                b"1;a\rb\r\nx\r\n0\r\n\r\n",
                b"1;a\nb\r\nx\r\n0\r\n\r\n",
                b"1;a\0\r\nx\r\n0\r\n\r\n",
                b"1;\xe9\r\nx\r\n0\r\n\r\n",
            ),
            *(
                b"1;a\r\r\nx\r\n0\r\n\r\n",
                b"1;" + b"a" * 300 + b"\r\nx\r\n0\r\n\r\n",
                b"0;\r\n\r\n",
                b"5\r\r;ABCD\r\n34\r\nE\r\n0\r\n\r\n",
            ),
            *(b"hello", b"GET / HTTP/1.1\r\n", b"\n1\r\nx\r\n0\r\n\r\n", b"0" * 300, b"0 \r\n\r\n", b"0, 0\r\n\r\n"),
        )
    ),
    good(
        "many extensions",
        chunked((b"a;" + b"a" * 90 + b"\r\n0123456789\r\n") * 9 + b"0\r\n\r\n"),
        ok(b"POST /body " + b"0123456789" * 9),
    ),
    good("tiny ones", chunked(b"1\r\nx\r\n2;a\r\nyz\r\n" * 300 + b"0\r\n\r\n"), ok(b"POST /body " + b"xyz" * 300)),
    good("the longest size line", chunked(b"1;" + b"a" * 252 + b"\r\nx\r\n0\r\n\r\n"), ok(b"POST /body x")),
    bad("size line a byte too long", chunked(b"1;" + b"a" * 253 + b"\r\nx\r\n0\r\n\r\n")),
    bad("extensions instead of data", chunked((b"1;%b\r\nx\r\n" % (b"a" * 200)) * 100 + b"0\r\n\r\n")),
    bad(
        "malformed, and not read",
        head("POST / HTTP/1.1", H, "Transfer-Encoding: chunked") + b"x\r\n\r\n",
        together=True,
    ),
    bad(
        "malformed later, and not read",
        head("POST / HTTP/1.1", H, "Transfer-Encoding: chunked") + b"1\r\nxy\r\n",
        together=True,
    ),
    *(
        bad(f"{name}, {how}", head(f"POST {how} HTTP/1.1", H, "Transfer-Encoding: chunked") + chunks, status)
        for how in ("/swallow", "/swallow/out")
        for name, chunks, status in (
            ("malformed", b"1\r\nx\r\nx\r\n", 400),
            ("over the limit", b"3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n", 413),
        )
    ),
    good("not all of it", chunked(b"5\r\nhel"), answer(400), end=WAITING),
    good("without the last", chunked(b"5\r\nhello\r\n"), answer(400), end=WAITING),
    good("without the last line", chunked(b"5\r\nhello\r\n0\r\n"), answer(400), end=WAITING),
    bad("over the limit", chunked(b"3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n"), 413),
    bad("over the limit together", chunked((b"64\r\n" + b"x" * 100 + b"\r\n") * 11 + b"0\r\n\r\n"), 413),
    bad(
        "over the limit, not read",
        head("POST / HTTP/1.1", H, "Transfer-Encoding: chunked") + b"3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n",
        413,
        together=True,
    ),
)

section(
    "RFC 9112 7.1.2: trailers",
    good("one", chunked(b"1\r\nx\r\n0\r\nA: b\r\n\r\n"), ok(b"POST /body x")),
    good(
        "the kind gets them",
        post(
            b"1\r\nx\r\n0\r\nA: \t b c \t\r\nD:\r\n\r\n", "Transfer-Encoding: chunked", line="POST /trailers HTTP/1.1"
        ),
        ok(b"A=b c;D=;"),
    ),
    good("the most", chunked(b"0\r\nA: " + b"b" * 8185 + b"\r\n\r\n"), ok(b"POST /body ")),
    bad("a byte too many", chunked(b"0\r\nA: " + b"b" * 8186 + b"\r\n\r\n")),
    good(
        "they change nothing",
        chunked(b"1\r\nx\r\n0\r\nConnection: close\r\nExpect: cake\r\nAuthorization: x\r\nContent-Type: a/b\r\n\r\n"),
        ok(b"POST /body x"),
    ),
    *(
        bad(f"malformed: {trailers!a}", chunked(b"1\r\nx\r\n0\r\n" + trailers))
        for trailers in (
            *(b"bad trailer\r\n\r\n", b"A : b\r\n\r\n", b" A: b\r\n\r\n", b": b\r\n\r\n", b"A: b\n\r\n", b"A: b\r\n\n"),
            *(
                b"A: b\r\r\n\r\n",
                b"A: b\0\r\n\r\n",
                b"A: b\rc\r\n\r\n",
                b"A: b\r\n c\r\n\r\n",
                b"A\xe9: b\r\n\r\n",
                b"A\r\n\r\n",
            ),
            *(b"Content-Length: 50\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n", b"A: b\r\nHost: a.test\r\n\r\n"),
            *(
                b"a: b\r\n" * 2000 + b"\r\n",
                b"a: " + b"b" * 9000 + b"\r\n\r\n",
                b"A: \x0b\r\n\r\n",
                b"GET / HTTP/1.1\r\n\r\n",
            ),
        )
    ),
    good(
        "out, to who wants them",
        head("GET /out HTTP/1.1", H, "TE: trailers"),
        Expected(200, b"pieces", {"Transfer-Encoding": "chunked"}, (("X-Sum", "1"),)),
    ),
    good(
        "out, among others",
        head("GET /out HTTP/1.1", H, "TE: deflate;q=0.5, Trailers"),
        Expected(200, b"pieces", {}, (("X-Sum", "1"),)),
    ),
    good("out, to who doesn't", head("GET /out HTTP/1.1", H), ok(b"pieces", Transfer_Encoding="chunked")),
    good(
        "out, to 1.0", head("GET /out HTTP/1.0", H, "TE: trailers"), ok(b"pieces", Transfer_Encoding=None), end=CLOSED
    ),
)

section(
    "RFC 9110 10.1.1: Expect",
    good(
        "the body comes at once",
        post(b"hello", "Content-Length: 5", "Expect: 100-continue"),
        ok(b"POST /body hello"),
        together=True,
    ),
    good(
        "chunks come at once",
        post(b"1\r\nx\r\n0\r\n\r\n", "Transfer-Encoding: chunked", "Expect: 100-continue"),
        ok(b"POST /body x"),
        together=True,
    ),
    good(
        "in capitals",
        post(b"hello", "Content-Length: 5", "Expect: 100-CONTINUE"),
        ok(b"POST /body hello"),
        together=True,
    ),
    good(
        "the application reads",
        post(b"", "Content-Length: 5", "Expect: 100-continue"),
        answer(100),
        answer(400),
        end=WAITING,
    ),
    good(
        "it doesn't",
        head("POST / HTTP/1.1", H, "Content-Length: 5", "Expect: 100-continue"),
        ok(b"POST /", Connection="close"),
        end=CLOSED,
    ),
    good("no body, nothing to go on with", get("Expect: 100-continue")),
    good("body of length 0", post(b"", "Content-Length: 0", "Expect: 100-continue"), ok(b"POST /body ")),
    good(
        "1.0",
        post(b"hello", "Content-Length: 5", "Expect: 100-continue", line="POST /body HTTP/1.0"),
        ok(b"POST /body hello"),
        end=CLOSED,
    ),
    bad("too large", post(b"", "Content-Length: 1001", "Expect: 100-continue"), 413),
    bad("another host", head("POST / HTTP/1.1", "Host: b.test", "Content-Length: 5", "Expect: 100-continue"), 421),
    *(
        bad(f"unknown: {value}", get(f"Expect: {value}"), 417)
        for value in ("cake", "200-ok", "100-continue, cake", "100-continue;q=1", "100", "")
    ),
    bad("unknown, with a body", post(b"hello", "Content-Length: 5", "Expect: cake"), 417),
    bad("unknown, twice", get("Expect: 100-continue", "Expect: cake"), 417),
)

section(
    "RFC 9110 7.8: Upgrade is ignored",
    good(
        "websocket", get("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13") + PROBE, ROOT, PROBED
    ),
    good(
        "h2c",
        get("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__") + PROBE,
        ROOT,
        PROBED,
    ),
    good("without connection", get("Upgrade: websocket")),
    good("connection without it", get("Connection: Upgrade")),
    good("1.0", head("GET / HTTP/1.0", H, "Connection: Upgrade", "Upgrade: x"), end=CLOSED),
    good("with a body", post(b"hi", "Connection: Upgrade", "Upgrade: h2c", "Content-Length: 2"), ok(b"POST /body hi")),
    good(
        "with chunks",
        post(b"2\r\nhi\r\n0\r\n\r\n", "Connection: Upgrade", "Upgrade: h2c", "Transfer-Encoding: chunked"),
        ok(b"POST /body hi"),
    ),
    good("and close", get("Connection: Upgrade, close", "Upgrade: x"), ok(b"GET /", Connection="close"), end=CLOSED),
)

section(
    "RFC 9110 15, 9112 6.3: answers",
    good("head", head("HEAD / HTTP/1.1", H), ok(b"", Content_Length="6"), method="HEAD"),
    good("head of pieces", head("HEAD /out HTTP/1.1", H), ok(b"", Content_Length=None), method="HEAD"),
    good(
        "head with a body",
        head("HEAD /body HTTP/1.1", H, "Content-Length: 2") + b"hi",
        ok(b"", Content_Length="13"),
        method="HEAD",
    ),
    Case("head refused", head("HEAD / HTTP/1.1"), (answer(400, b"", Content_Length="16"),), CLOSED, "HEAD"),
    Case("head for another", head("HEAD / HTTP/1.1", "Host: b.test"), (answer(421, b""),), CLOSED, "HEAD"),
    Case(
        "head, body too large", head("HEAD / HTTP/1.1", H, "Content-Length: 1001"), (answer(413, b""),), CLOSED, "HEAD"
    ),
    good("204", head("GET /204 HTTP/1.1", H), answer(204, b"", Content_Length=None, Transfer_Encoding=None)),
    good("205", head("GET /205 HTTP/1.1", H), answer(205, b"", Content_Length="0", Transfer_Encoding=None)),
    good("304", head("GET /304 HTTP/1.1", H), answer(304, b"", Content_Length=None, Transfer_Encoding=None)),
    good("404", head("GET /404 HTTP/1.1", H), answer(404, b"GET /404")),
    good("500", head("GET /500 HTTP/1.1", H), answer(500, b"GET /500")),
    good(
        "204 in pieces", head("GET /out/204 HTTP/1.1", H), answer(204, b"", Content_Length=None, Transfer_Encoding=None)
    ),
    good(
        "205 in pieces", head("GET /out/205 HTTP/1.1", H), answer(205, b"", Content_Length="0", Transfer_Encoding=None)
    ),
    good(
        "304 in pieces", head("GET /out/304 HTTP/1.1", H), answer(304, b"", Content_Length=None, Transfer_Encoding=None)
    ),
    good("pieces", head("GET /out HTTP/1.1", H), ok(b"pieces", Transfer_Encoding="chunked", Content_Length=None)),
    good(
        "pieces, 1.0",
        head("GET /out HTTP/1.0", H),
        ok(b"pieces", Transfer_Encoding=None, Connection="close"),
        end=CLOSED,
    ),
    good(
        "pieces, 1.0, keep-alive",
        head("GET /out HTTP/1.0", H, "Connection: keep-alive"),
        ok(b"pieces", Connection="close"),
        end=CLOSED,
    ),
    good("longer than said", head("GET /long HTTP/1.1", H), ok(b"12345"), end=CLOSED),
    good("longer than said, in pieces", head("GET /out/long HTTP/1.1", H), ok(b"12345"), end=CLOSED),
)

section(
    "what clients send",
    good("curl", head("GET / HTTP/1.1", H, "User-Agent: curl/8.5.0", "Accept: */*")),
    good(
        "curl's upload",
        post(b"1\r\nx\r\n0\r\n\r\n", "Accept: */*", "Transfer-Encoding: chunked", "Expect: 100-continue"),
        ok(b"POST /body x"),
        together=True,
    ),
    good(
        "firefox",
        head(
            *(
                "GET /favicon.ico HTTP/1.1",
                "Host: a.test:8080",
                "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Firefox/130.0",
            ),
            *(
                "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
                "Accept-Language: de,en-US;q=0.7",
            ),
            *(
                "Accept-Encoding: gzip, deflate, br, zstd",
                "DNT: 1",
                "Connection: keep-alive",
                "Upgrade-Insecure-Requests: 1",
            ),
            *(
                "Cookie: a=b; c=d",
                "Sec-Fetch-Dest: document",
                "Priority: u=0, i",
                "Pragma: no-cache",
                "Cache-Control: no-cache",
            ),
        ),
        ok(b"GET /favicon.ico"),
    ),
    good(
        "chrome",
        head(
            *(
                "GET /?q=%E2%82%AC HTTP/1.1",
                H,
                "Connection: keep-alive",
                'sec-ch-ua: "Chromium";v="128", "Not;A=Brand";v="24"',
            ),
            *(
                "sec-ch-ua-mobile: ?0",
                'sec-ch-ua-platform: "Linux"',
                "Accept: text/html",
                "Accept-Encoding: gzip, deflate",
            ),
        ),
        ok(b"GET /?q=%E2%82%AC"),
    ),
    good("go", head("GET / HTTP/1.1", H, "User-Agent: Go-http-client/1.1", "Accept-Encoding: gzip")),
    good(
        "java",
        get(
            "Accept: text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2",
            "Connection: keep-alive",
            "User-Agent: Java/17.0.2",
        ),
    ),
    good(
        "requests",
        get(
            "User-Agent: python-requests/2.32",
            "Accept-Encoding: gzip, deflate",
            "Accept: */*",
            "Connection: keep-alive",
        ),
    ),
    good(
        "urllib",
        head("GET / HTTP/1.1", "Accept-Encoding: identity", H, "User-Agent: Python-urllib/3.11", "Connection: close"),
        end=CLOSED,
    ),
    good("ab", head("GET / HTTP/1.0", H, "User-Agent: ApacheBench/2.3", "Accept: */*"), end=CLOSED),
    good("ab -k", head("GET / HTTP/1.0", "Connection: Keep-Alive", H, "User-Agent: ApacheBench/2.3", "Accept: */*")),
    good("wrk", get()),
    good("nginx's proxy", head("GET / HTTP/1.0", H, "Connection: close", "X-Forwarded-For: 192.0.2.1"), end=CLOSED),
    good("haproxy's check", head("OPTIONS / HTTP/1.0"), ok(b"OPTIONS /"), end=CLOSED),
    good(
        "a load balancer's check",
        head(
            "GET /health HTTP/1.1",
            H,
            "Connection: close",
            "User-Agent: ELB-HealthChecker/2.0",
            "Accept-Encoding: gzip, compressed",
        ),
        ok(b"GET /health"),
        end=CLOSED,
    ),
    good(
        "kube-probe",
        head("GET /health HTTP/1.1", H, "User-Agent: kube-probe/1.31", "Accept: */*", "Connection: close"),
        ok(b"GET /health"),
        end=CLOSED,
    ),
    good(
        "monitoring plugins",
        head("GET / HTTP/1.1", "User-Agent: check_http/v2.3 (monitoring-plugins 2.3)", "Connection: close", H),
        end=CLOSED,
    ),
    good(
        "netscape",
        head(
            "POST /body HTTP/1.0",
            "Connection: Keep-Alive",
            "Content-type: application/x-www-form-urlencoded",
            "Content-length: 3",
        )
        + b"a=b\r\n"
        + PROBE,
        ok(b"POST /body a=b"),
        PROBED,
    ),
    good("webdav", head("PROPFIND / HTTP/1.1", H, "Depth: 1", "Content-Length: 0"), ok(b"PROPFIND /")),
    good(
        "cors",
        head("OPTIONS / HTTP/1.1", H, "Origin: http://b.test", "Access-Control-Request-Method: PUT"),
        ok(b"OPTIONS /"),
    ),
    good(
        "an object store's upload",
        post(
            b"1;chunk-signature=0aF\r\nx\r\n0;chunk-signature=0aF\r\n\r\n",
            "Transfer-Encoding: chunked",
            "X-Amz-Content-Sha256: STREAMING",
        ),
        ok(b"POST /body x"),
    ),
)

section(
    "not finished",
    *(
        Case(f"waits after {raw[-12:]!a}", raw, (), WAITING)
        for raw in (
            *(b"", b"G", b"GET", b"GET ", b"GET /hello", b"GET /hello ", b"GET /hello HTTP", b"GET /hello HTTP/1.1"),
            *(b"GET / HTTP/1.1\r", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHos", b"GET / HTTP/1.1\r\nHost:"),
            *(b"GET / HTTP/1.1\r\nHost: a", b"GET / HTTP/1.1\r\nHost: a.test\r", b"GET / HTTP/1.1\r\nHost: a.test\r\n"),
            *(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r", b"\r", b"\r\n", b"\r\nG", b"OPTIONS *", b"GET http://a.t"),
        )
    ),
)
