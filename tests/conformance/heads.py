"""Heads to try: valid ones from parts, and the same with something broken."""

from hypothesis import strategies as st

_METHODS = [b"GET", b"POST", b"HEAD", b"PUT", b"OPTIONS", b"DELETE", b"M-SEARCH", b"QUERY"]
_ODD_METHODS = [
    b"CONNECT",
    b"get",
    b"FOO",
    b"G\xc3\xa9T",
    b"",
    b"A" * 33,
    b"GET\t",
    b"PRI",
    b"GET:",
    b"[GET]",
]
_TARGETS = [
    *(
        b"/",
        b"/a/b%20c?d=e&f=%zz",
        b'/|^{}[]`"',
        b'/a?<>\\|^{}[]`"',
        b"//x/..//",
        b"/;p=1?/?:@",
        b"/?",
        b"/a" * 20,
    ),
    *(b"http://a.example", b"HTTP://A.example:80/b?c", b"http://[::1]/", b"http://a?b"),
]
_ODD_TARGETS = [
    *(
        b"*",
        b"a.example:443",
        b"",
        b"a",
        b"/a#b",
        b"/\xc3\xa9",
        b"/%z",
        b"/%",
        b"/a\\b",
        b"/<",
        b"/a b",
        b"/\x00",
        b"/\x7f",
    ),
    *(
        b"http://u:p@a/",
        b"http:///a",
        b"http://a:0/",
        b"https://a/",
        b"ftp://a/",
        b"http:/a",
        b"http://[::1",
        b"http://a:b/",
    ),
    *(b"http://a/#f", b"http://a%41/", b"//", b"**", b"?a"),
]
_VERSIONS = [b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0"]
_ODD_VERSIONS = [
    *(
        b"HTTP/2.0",
        b"HTTP/1.2",
        b"HTTP/0.9",
        b"http/1.1",
        b"HTTP/1.10",
        b"HTTP/01.1",
        b"HTTP/1",
        b"",
        b"HTTP/1.1 ",
        b"HTTQ/1.1",
    ),
    *(b"HTTP/1,1", b"HTTP/1.\xb2", b"RTSP/1.0", b"HTTP/1.1\t"),
]
_HOSTS = [
    b"a.example",
    b"A.Example.:8080",
    b"127.0.0.1:80",
    b"[2001:DB8::1]:8080",
    b"a_b-c",
    b"xn--bcher-kva.example",
    b"a:",
]
_ODD_HOSTS = [
    *(
        b"",
        b"a b",
        b"a,b",
        b"a/b",
        b"u@a",
        b"a:b",
        b"a:0",
        b"a:65536",
        b"a:080000",
        b"[::1",
        b"[::g]",
        b"::1",
        b"[v1.a]",
        b"a..b",
    ),
    *(
        b".a",
        b".",
        b"256.1.1.1",
        b"1.2.3",
        b"0x7f.1",
        b"a%41",
        b"b\xc3\xbc",
        b"a" * 64,
        b"a." * 127 + b"bc",
        b"a;b",
        b"[::1%25lo]",
        b"[::1]a",
    ),
]
_FIELDS = [
    *(
        b"Accept: */*",
        b"Cookie: a=b; c=d",
        b"x:",
        b"X-A:b ",
        b"hosts: no",
        b"content-lengths: no",
        b"transfer-encodings: no",
    ),
    *(
        b"Te: trailers",
        b"connection: close",
        b"Connection: keep-alive",
        b"H: 1",
        b"Content-Type: a/b",
        b"Trailer: x",
    ),
    *(b"a:\xff\x80\t \tb", b"!#$%&'*+-.^_`|~: 1", b"content-language: en", b"hos: t", b"transfer: x"),
    b"Upgrade: h2c",
    b"Connection: Upgrade, HTTP2-Settings",
    b"Expect: 100-continue",
    b"Proxy-Connection: close",
]
_FRAMING = [
    b"Content-Length: 5",
    b"content-length:\t0 ",
    b"Transfer-Encoding: chunked",
    b"transfer-encoding:Chunked",
    b"CONTENT-LENGTH: 007",
]
_ODD_FIELDS = [
    *(
        b" folded: x",
        b"\tfolded",
        b"a b: c",
        b"a : b",
        b": b",
        b"nocolon",
        b"a: \x00",
        b"a: \x0b",
        b"a: \x7f",
        b"a: b\rc: d",
        b"a: b\nc: d",
    ),
    *(
        b"a\x00: b",
        b"\xe9: b",
        b"a(: b",
        b"Host : a",
        b"Host\t: a",
        b"\rHost: a",
        b"a: b\r",
        b"",
        b"a: \r\n b",
    ),
    *(
        b"Content-Length: 5, 5",
        b"Content-Length: +5",
        b"Content-Length: -1",
        b"Content-Length: 0x5",
        b"Content-Length: 5 5",
    ),
    *(
        b"Content-Length: ",
        b"Content-Length: 1e3",
        b"Content-Length: 5\x0b",
        b"Content-Length: 5.0",
        b"Content-Length : 5",
    ),
    *(
        b"Content-Length: 9223372036854775808",
        b"Content-Length: 18446744073709551621",
        b"Content-Length: 1_0",
        b"Content-Length: \xb2",
    ),
    *(
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked, chunked",
        b"Transfer-Encoding: identity",
    ),
    *(
        b"Transfer-Encoding: chunked, gzip",
        b"Transfer-Encoding: chunked;a=b",
        b"Transfer-Encoding: \x0bchunked",
    ),
    *(
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: ",
        b"Transfer-Encoding: ,chunked",
        b'Transfer-Encoding: "chunked"',
    ),
    *(b"Transfer-Encoding\xa0: chunked", b"Transfer_Encoding: chunked", b"Transfer-Encoding:\n chunked"),
]
_ENDS = [b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n\r\n", b""]
NASTY = [
    b"\r",
    b"\n",
    b"\r\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b"\x7f",
    b"\xff",
    b"\x0b",
    b",",
    b"%",
    b"#",
    b"A",
    b"1",
]


def _mostly(good: list[bytes], odd: list[bytes]) -> st.SearchStrategy[bytes]:
    return st.one_of(*[st.sampled_from(good)] * 6, st.sampled_from(odd))


@st.composite
def valid_heads(draw: st.DrawFn) -> bytes:
    """Heads that are valid for sure."""
    target = draw(st.sampled_from(_TARGETS))
    fields = draw(st.lists(st.sampled_from(_FIELDS), max_size=8))
    fields.insert(draw(st.integers(0, len(fields))), b"Host: " + draw(st.sampled_from(_HOSTS)))
    if draw(st.booleans()):
        fields.insert(draw(st.integers(0, len(fields))), draw(st.sampled_from(_FRAMING)))
    empty = draw(st.sampled_from([b"", b"", b"\r\n"]))
    return (
        empty
        + draw(st.sampled_from(_METHODS))
        + b" "
        + target
        + b" HTTP/1.1\r\n"
        + b"".join(f + b"\r\n" for f in fields)
        + b"\r\n"
    )


@st.composite
def likely_heads(draw: st.DrawFn) -> bytes:
    """Heads of which about half are valid, and most others have just one fault."""
    end = st.sampled_from(_ENDS) if draw(st.integers(0, 3)) == 0 else st.just(b"\r\n")
    blank = st.sampled_from([b" "] * 20 + [b"  ", b"\t", b""])
    line = (
        draw(_mostly(_METHODS, _ODD_METHODS))
        + draw(blank)
        + draw(_mostly(_TARGETS, _ODD_TARGETS))
        + draw(blank)
    )
    line += draw(_mostly(_VERSIONS, _ODD_VERSIONS))
    fields = draw(st.lists(_mostly(_FIELDS, _FIELDS + _ODD_FIELDS), max_size=5))
    for _ in range(draw(st.sampled_from([1, 1, 1, 1, 1, 0, 2]))):
        host = draw(st.sampled_from([b"Host:", b"host: ", b"HOST:\t"])) + draw(_mostly(_HOSTS, _ODD_HOSTS))
        fields.insert(draw(st.integers(0, len(fields))), host + draw(st.sampled_from([b"", b"", b" \t"])))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2]))):
        fields.insert(draw(st.integers(0, len(fields))), draw(_mostly(_FRAMING, _ODD_FIELDS)))
    start = draw(st.sampled_from([b""] * 10 + [b"\r\n", b"\n", b"\r\n\r\n", b" "]))
    return start + b"".join(part + draw(end) for part in [line, *fields, b""])


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    """Likely heads with a few bytes put in, taken out or replaced anywhere."""
    data = draw(likely_heads())
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.sampled_from([b"", *NASTY])) + data[at + draw(st.integers(0, 2)) :]
    return data
