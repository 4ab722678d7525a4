"""Who the client is behind trusted proxies: what is believed, and every way to be somebody else."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyttpd.head import Refused

from pyttpd_vhost.http.proxies import MAX_HOPS, Proxies

from .conftest import HOST, Client, Serve

PROXY = ("10.0.0.1", "40000")
TRUSTED = ("10.0.0.0/8", "2001:db8::/32", "127.0.0.1/32")


@dataclass
class Case:
    """Header fields that a proxy at PROXY sends, and what is believed: only what differs from a bare request."""

    name: str
    fields: list[tuple[str, str]]
    client: str = PROXY[0]
    port: str = "0"
    scheme: str = "http"
    host: str = ""
    server_port: int = 0
    believed: dict[str, str] = field(default_factory=dict)
    refused: int = 0


def xff(*values: str) -> list[tuple[str, str]]:
    return [("X-Forwarded-For", value) for value in values]


def chain(value: str) -> dict[str, str]:
    return {"X-Forwarded-For": value}


OWN: dict[str, Any] = {"client": PROXY[0], "port": PROXY[1]}
X_FORWARDED = [
    Case("nothing", [], **OWN),
    Case("one", xff("192.0.2.7"), "192.0.2.7", believed=chain("192.0.2.7")),
    Case(
        "the client's own lies before it", xff("6.6.6.6, 192.0.2.7"), "192.0.2.7", believed=chain("192.0.2.7")
    ),
    Case(
        "lies in a field of their own", xff("6.6.6.6", "192.0.2.7"), "192.0.2.7", believed=chain("192.0.2.7")
    ),
    Case(
        "lies that are trusted addresses",
        xff("10.0.0.9, 192.0.2.7"),
        "192.0.2.7",
        believed=chain("192.0.2.7"),
    ),
    Case(
        "two proxies",
        xff("6.6.6.6, 192.0.2.7, 10.0.0.2"),
        "192.0.2.7",
        believed=chain("192.0.2.7, 10.0.0.2"),
    ),
    Case(
        "a proxy in each field",
        xff("6.6.6.6", "192.0.2.7", "10.0.0.2"),
        "192.0.2.7",
        believed=chain("192.0.2.7, 10.0.0.2"),
    ),
    Case("all are trusted", xff("10.0.0.3, 10.0.0.2"), "10.0.0.3", believed=chain("10.0.0.3, 10.0.0.2")),
    Case("blanks", xff(" \t192.0.2.7\t "), "192.0.2.7", believed=chain("192.0.2.7")),
    Case("empty entries", xff("192.0.2.7,, ,"), "192.0.2.7", believed=chain("192.0.2.7")),
    Case("empty", xff(""), **OWN),
    Case("only commas", xff(",,,"), **OWN),
    Case(
        "any case", [("x-FORWARDED-for", "192.0.2.7")], "192.0.2.7", believed={"x-FORWARDED-for": "192.0.2.7"}
    ),
    Case("port", xff("192.0.2.7:1234"), "192.0.2.7", "1234", believed=chain("192.0.2.7:1234")),
    Case("port that is none", xff("192.0.2.7:65536"), **OWN),
    Case("IPv6", xff("2001:DB9::0:1"), "2001:db9::1", believed=chain("2001:DB9::0:1")),
    Case("IPv6 in brackets", xff("[2001:db9::1]"), "2001:db9::1", believed=chain("[2001:db9::1]")),
    Case("IPv6 and port", xff("[2001:db9::1]:99"), "2001:db9::1", "99", believed=chain("[2001:db9::1]:99")),
    Case("IPv6 proxy", xff("192.0.2.7, 2001:db8::1"), "192.0.2.7", believed=chain("192.0.2.7, 2001:db8::1")),
    Case(
        "IPv4 in IPv6 is IPv4",
        xff("192.0.2.7, ::ffff:10.0.0.2"),
        "192.0.2.7",
        believed=chain("192.0.2.7, ::ffff:10.0.0.2"),
    ),
    Case("IPv4 in brackets", xff("[192.0.2.7]"), **OWN),
    Case("IPv6 with a zone", xff("fe80::1%eth0"), **OWN),
    Case("leading zeros are octal somewhere", xff("192.0.2.07"), **OWN),
    Case("junk", xff("<script>"), **OWN),
    Case("junk before the client", xff("<script>, 192.0.2.7"), "192.0.2.7", believed=chain("192.0.2.7")),
    Case("junk behind a proxy", xff("192.0.2.7, junk, 10.0.0.2"), "10.0.0.2", believed=chain("10.0.0.2")),
    Case("unknown", xff("unknown"), **OWN),
    Case("obfuscated", xff("_hidden"), **OWN),
    Case("a name", xff("proxy.example"), **OWN),
    Case("bytes", xff("\xff\xfe"), **OWN),
    Case(
        "https",
        [("X-Forwarded-Proto", "https")],
        scheme="https",
        believed={"X-Forwarded-Proto": "https"},
        **OWN,
    ),
    Case(
        "HTTPS",
        [("X-Forwarded-Proto", "HTTPS")],
        scheme="https",
        believed={"X-Forwarded-Proto": "https"},
        **OWN,
    ),
    Case("wss", [("X-Forwarded-Proto", "wss")], scheme="https", believed={"X-Forwarded-Proto": "wss"}, **OWN),
    Case("appended", [("X-Forwarded-Proto", "https, http")], believed={"X-Forwarded-Proto": "http"}, **OWN),
    Case(
        "twice",
        [("X-Forwarded-Proto", "https"), ("X-Forwarded-Proto", "http")],
        believed={"X-Forwarded-Proto": "http"},
        **OWN,
    ),
    Case("no scheme", [("X-Forwarded-Proto", "ftp")], **OWN),
    Case("empty scheme", [("X-Forwarded-Proto", "")], **OWN),
    Case(
        "port alone",
        [("X-Forwarded-Port", "8443")],
        server_port=8443,
        believed={"X-Forwarded-Port": "8443"},
        **OWN,
    ),
    Case("port 0", [("X-Forwarded-Port", "0")], **OWN),
    Case("port too large", [("X-Forwarded-Port", "65536")], **OWN),
    Case("port of digits elsewhere", [("X-Forwarded-Port", "\xb2")], **OWN),
    Case(
        "host",
        [("X-Forwarded-Host", "A.Test:81")],
        host="a.test",
        server_port=81,
        believed={"X-Forwarded-Host": "A.Test:81"},
        **OWN,
    ),
    Case(
        "host, and a port that says more",
        [("X-Forwarded-Host", "a.test"), ("X-Forwarded-Port", "444")],
        host="a.test",
        server_port=444,
        believed={"X-Forwarded-Port": "444", "X-Forwarded-Host": "a.test"},
        **OWN,
    ),
    Case(
        "host appended",
        [("X-Forwarded-Host", "evil, a.test")],
        host="a.test",
        believed={"X-Forwarded-Host": "a.test"},
        **OWN,
    ),
    Case("empty host", [("X-Forwarded-Host", "")], **OWN),
    Case("malformed host", [("X-Forwarded-Host", "a/b")], refused=400),
    Case("host with a user", [("X-Forwarded-Host", "a@b")], refused=400),
    Case(
        "X-Real-IP follows",
        [*xff("192.0.2.7"), ("X-Real-IP", "6.6.6.6")],
        "192.0.2.7",
        believed={"X-Forwarded-For": "192.0.2.7", "X-Real-IP": "192.0.2.7"},
    ),
    Case(
        "X-Real-IP alone is nobody's word",
        [("X-Real-IP", "6.6.6.6")],
        believed={"X-Real-IP": PROXY[0]},
        **OWN,
    ),
    Case(
        "others are passed on",
        [("X-Forwarded-Prefix", "/a"), ("X-Forwarded-Server", "b"), ("X-Other", "c")],
        believed={"X-Forwarded-Prefix": "/a", "X-Forwarded-Server": "b"},
        **OWN,
    ),
    Case("the other family doesn't count", [("Forwarded", "for=6.6.6.6;proto=https")], **OWN),
    Case(
        "everything",
        [
            *xff("6.6.6.6, 192.0.2.7, 10.0.0.2"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "a.test"),
            ("X-Forwarded-Port", "443"),
        ],
        "192.0.2.7",
        scheme="https",
        host="a.test",
        server_port=443,
        believed={
            "X-Forwarded-For": "192.0.2.7, 10.0.0.2",
            "X-Forwarded-Proto": "https",
            "X-Forwarded-Port": "443",
            "X-Forwarded-Host": "a.test",
        },
    ),
]


def fwd(*values: str) -> list[tuple[str, str]]:
    return [("Forwarded", value) for value in values]


def shown(value: str) -> dict[str, str]:
    return {"Forwarded": value}


FORWARDED = [
    Case("nothing", [], **OWN),
    Case("one", fwd("for=192.0.2.7"), "192.0.2.7", believed=shown("for=192.0.2.7")),
    Case("lies before it", fwd("for=6.6.6.6, for=192.0.2.7"), "192.0.2.7", believed=shown("for=192.0.2.7")),
    Case(
        "two proxies, two fields",
        fwd(
            "for=6.6.6.6;proto=ftp, for=192.0.2.7;proto=https;host=a.test", 'for=10.0.0.2;by="[2001:db8::1]"'
        ),
        "192.0.2.7",
        scheme="https",
        host="a.test",
        believed=shown('for=192.0.2.7;proto=https;host=a.test, for=10.0.0.2;by="[2001:db8::1]"'),
    ),
    Case(
        "the first believed element that says it",
        fwd("for=192.0.2.7, for=10.0.0.2;proto=https"),
        "192.0.2.7",
        scheme="https",
        believed=shown("for=192.0.2.7, for=10.0.0.2;proto=https"),
    ),
    Case(
        "a scheme behind the client is the client's",
        fwd("for=6.6.6.6;proto=https;host=evil, for=192.0.2.7"),
        "192.0.2.7",
        believed=shown("for=192.0.2.7"),
    ),
    Case("quoted", fwd('For="192.0.2.7:80"'), "192.0.2.7", "80", believed=shown('For="192.0.2.7:80"')),
    Case("IPv6", fwd('for="[2001:DB9::1]"'), "2001:db9::1", believed=shown('for="[2001:DB9::1]"')),
    Case(
        "IPv6 and port",
        fwd('for="[2001:db9::1]:9"'),
        "2001:db9::1",
        "9",
        believed=shown('for="[2001:db9::1]:9"'),
    ),
    Case("hidden port", fwd('for="192.0.2.7:_x"'), "192.0.2.7", believed=shown('for="192.0.2.7:_x"')),
    Case("escaped", fwd('for="192.0.2\\.7"'), "192.0.2.7", believed=shown('for="192.0.2\\.7"')),
    Case(
        "unquoted, as often seen",
        fwd("for=192.0.2.7:80"),
        "192.0.2.7",
        "80",
        believed=shown("for=192.0.2.7:80"),
    ),
    Case(
        "blanks",
        fwd(" for=192.0.2.7 ; proto=https ,\tfor=10.0.0.2"),
        "192.0.2.7",
        scheme="https",
        believed=shown("for=192.0.2.7 ; proto=https, for=10.0.0.2"),
    ),
    Case("empty elements", fwd(",for=192.0.2.7;,,"), "192.0.2.7", believed=shown("for=192.0.2.7;")),
    Case("empty", fwd(""), **OWN),
    Case(
        "unknown",
        fwd("for=unknown;proto=https"),
        scheme="https",
        believed=shown("for=unknown;proto=https"),
        **OWN,
    ),
    Case("obfuscated", fwd("for=6.6.6.6, for=_hidden"), believed=shown("for=_hidden"), **OWN),
    Case(
        "obfuscated in the middle",
        fwd("for=6.6.6.6, for=_hidden, for=10.0.0.2"),
        "10.0.0.2",
        believed=shown("for=_hidden, for=10.0.0.2"),
    ),
    Case("without for", fwd("proto=https"), scheme="https", believed=shown("proto=https"), **OWN),
    Case("no scheme", fwd("for=192.0.2.7;proto=ftp"), "192.0.2.7", believed=shown("for=192.0.2.7;proto=ftp")),
    Case(
        "a comma in quotes",
        fwd('for=6.6.6.6;x="a,for=7.7.7.7;b", for=192.0.2.7'),
        "192.0.2.7",
        believed=shown("for=192.0.2.7"),
    ),
    Case("a quote that swallows what the proxy says", fwd('for="x, for=192.0.2.7'), refused=400),
    Case("one that closes in the proxy's", fwd('for="x, for="[2001:db9::1]"'), refused=400),
    Case(
        "one in a field of its own",
        fwd('for="x', "for=192.0.2.7"),
        "192.0.2.7",
        believed=shown("for=192.0.2.7"),
    ),
    Case("twice in one element", fwd("for=6.6.6.6;for=192.0.2.7"), refused=400),
    Case("no pair", fwd("192.0.2.7"), refused=400),
    Case("something behind quotes", fwd('for="192.0.2.7"x'), refused=400),
    Case("malformed host", fwd('for=192.0.2.7;host="a b"'), refused=400),
    Case("the other family doesn't count", [*xff("6.6.6.6"), ("X-Forwarded-Proto", "https")], **OWN),
]


@pytest.mark.parametrize(
    ("headers", "case"),
    [
        *(pytest.param("x-forwarded", case, id=f"x-forwarded, {case.name}") for case in X_FORWARDED),
        *(pytest.param("forwarded", case, id=f"forwarded, {case.name}") for case in FORWARDED),
    ],
)
def test_what_is_believed(headers: str, case: Case) -> None:
    proxies = Proxies(TRUSTED, headers)
    fields = [(name.encode(), value.encode("latin-1")) for name, value in case.fields]
    if case.refused:
        with pytest.raises(Refused) as caught:
            proxies.origin(PROXY, fields)
        assert caught.value.status == case.refused
        return
    origin = proxies.origin(PROXY, fields)
    assert (origin.address, origin.port) == (case.client, case.port)
    assert (origin.scheme, origin.host, origin.server_port) == (case.scheme, case.host, case.server_port)
    assert dict(origin.believed) == case.believed


def test_a_long_list_is_walked_so_far_and_no_further() -> None:
    proxies = Proxies(TRUSTED, "x-forwarded")
    hops = ["192.0.2.7", *(f"10.1.{number >> 8}.{number & 255}" for number in range(5000))]
    fields = [(b"X-Forwarded-For", ",".join(hops).encode())]
    begin = time.thread_time()
    origin = proxies.origin(PROXY, fields)
    assert time.thread_time() - begin < 0.1
    assert origin.address == hops[-MAX_HOPS]
    assert len(dict(origin.believed)["X-Forwarded-For"].split(", ")) == MAX_HOPS
    assert len(proxies._networks._known) <= MAX_HOPS + 1


SIZE = 60_000


@pytest.mark.parametrize(
    ("headers", "name", "value"),
    [
        ("x-forwarded", "X-Forwarded-For", "," * SIZE),
        ("x-forwarded", "X-Forwarded-For", "1" * SIZE),
        ("x-forwarded", "X-Forwarded-For", " " * SIZE + "x"),
        ("x-forwarded", "X-Forwarded-For", "10.0.0.2," * (SIZE // 9)),
        ("x-forwarded", "X-Forwarded-Host", "a," * (SIZE // 2)),
        ("x-forwarded", "X-Forwarded-Port", "1" * SIZE),
        ("forwarded", "Forwarded", "," * SIZE),
        ("forwarded", "Forwarded", ";" * SIZE),
        ("forwarded", "Forwarded", "for=a" + " " * SIZE + '"'),
        ("forwarded", "Forwarded", " " * SIZE + '"'),
        ("forwarded", "Forwarded", "a" * SIZE),
        ("forwarded", "Forwarded", "a=" + "b" * SIZE + '"'),
        ("forwarded", "Forwarded", 'a="' + "b" * SIZE),
        ("forwarded", "Forwarded", 'a="' + '\\"' * (SIZE // 2)),
        ("forwarded", "Forwarded", "for=10.0.0.2," * (SIZE // 13)),
        ("forwarded", "Forwarded", 'for="",' * (SIZE // 7)),
        ("forwarded", "Forwarded", "".join(f"a{number}=b;" for number in range(SIZE // 9))),
    ],
)
def test_long_headers_cost_time_by_their_length(headers: str, name: str, value: str) -> None:
    """Not by its square: a client can make them long, and a proxy passes them on."""
    fields = [(name.encode(), value.encode())]
    begin = time.thread_time()
    with contextlib.suppress(Refused):
        assert Proxies(TRUSTED, headers).origin(PROXY, fields).address
    assert time.thread_time() - begin < 0.5


def test_what_is_remembered_of_addresses_is_bounded() -> None:
    proxies = Proxies(TRUSTED, "x-forwarded")
    assert not any(proxies.trusts(f"192.0.{number >> 8}.{number & 255}") for number in range(3000))
    assert len(proxies._networks._known) <= 1024
    assert proxies.trusts("10.200.0.1")
    assert proxies.trusts("::ffff:10.0.0.1")
    assert not proxies.trusts("2001:db9::1")


@given(
    st.sampled_from(["x-forwarded", "forwarded"]),
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    b"Forwarded",
                    b"X-Forwarded-For",
                    b"X-Forwarded-Proto",
                    b"X-Forwarded-Host",
                    b"X-Forwarded-Port",
                    b"X-Real-IP",
                ]
            ),
            st.one_of(
                st.binary(max_size=40).map(
                    lambda text: bytes(byte for byte in text if byte in b"\t" or 32 <= byte != 127)
                ),
                st.lists(
                    st.sampled_from(
                        [
                            b"for=",
                            b"proto=",
                            b"host=",
                            b'"',
                            b",",
                            b";",
                            b" ",
                            b"\\",
                            b"10.0.0.2",
                            b"6.6.6.6",
                            b"[",
                            b"::1",
                            b"]",
                            b":",
                            b"80",
                            b"a.test",
                            b"_x",
                            b"https",
                        ]
                    )
                ).map(b"".join),
            ),
        ),
        max_size=4,
    ),
)
def test_whatever_comes(headers: str, fields: list[tuple[bytes, bytes]]) -> None:
    """An origin of which every part is what it must be, or a refusal."""
    try:
        origin = Proxies(TRUSTED, headers).origin(PROXY, fields)
    except Refused:
        return
    assert str(ip_address(origin.address)) == origin.address
    assert 0 <= int(origin.port) <= 65535
    assert origin.scheme in ("http", "https")
    assert 0 <= origin.server_port <= 65535
    assert not origin.host or origin.host == origin.host.lower()
    for name, value in origin.believed:
        assert (name + value).encode("latin-1")
        assert "\r" not in value
        assert "\n" not in value


# ---- over real sockets ---------------------------------------------------------------------------------------------


def seen_by_application(serve: Serve, headers: str, **share: Any) -> dict[str, Any]:
    """Return the environ of a request from 127.0.0.1 with these `headers`; "status" is the answer's."""
    seen: dict[str, Any] = {}

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        seen.update(environ)
        start_response("204 No Content", [])
        return []

    server = serve(application, share=share)
    answer = None
    with server.connect() as sock:
        client = Client(sock)
        for _ in range(3):  # also when the head is remembered
            seen.clear()
            sock.sendall(f"GET /x HTTP/1.1\r\nHost: {HOST}\r\n{headers}\r\n".encode("latin-1"))
            answer = client.answer()
            if answer.status != 204:
                break
    assert answer is not None
    seen["status"] = answer.status
    return seen


KEYS = ("REMOTE_ADDR", "wsgi.url_scheme", "HTTPS", "SERVER_NAME", "SERVER_PORT", "HTTP_HOST")
LIES = (
    "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: wild.test\r\nX-Forwarded-Port: 99\r\n"
    "Forwarded: for=6.6.6.6;proto=https\r\nX-Real-IP: 6.6.6.6\r\nX-Forwarded-Ssl: on\r\n"
)


@pytest.mark.parametrize("trusted", [(), ("127.0.0.2/32", "::1/128")])
@pytest.mark.parametrize("headers", ["x-forwarded", "forwarded"])
def test_nobody_else_is_believed(serve: Serve, trusted: tuple[str, ...], headers: str) -> None:
    """And an application that believes such headers by itself doesn't see them."""
    seen = seen_by_application(serve, LIES, trusted_proxies=trusted, proxy_headers=headers)
    assert [seen.get(key) for key in KEYS] == ["127.0.0.1", "http", None, HOST, "80", HOST]
    assert not [key for key in seen if "FORWARDED" in key or "REAL" in key]


def test_a_dropped_header_is_told_once(serve: Serve) -> None:
    """Who has put a proxy in front and named it nowhere finds out why."""

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("204 No Content", [])
        return []

    server = serve(application)
    with server.connect() as sock:
        for name in ("X-Forwarded-For", "X-Forwarded-Proto", "x-forwarded-for"):
            sock.sendall(f"GET /x HTTP/1.1\r\nHost: {HOST}\r\n{name}: 1\r\n\r\n".encode())
            Client(sock).answer()
    assert server.site.log.events() == ["a forwarding header was dropped: trusted_proxies names nobody"]  # type: ignore[attr-defined]


def test_a_trusted_proxy_is_believed(serve: Serve) -> None:
    seen = seen_by_application(
        serve,
        "X-Forwarded-For: 6.6.6.6, 192.0.2.7:99\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: b.wild.test:444\r\n"
        "X_Forwarded_For: 6.6.6.6\r\nX-Forwarded_For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n",
        trusted_proxies=("127.0.0.0/8",),
    )
    assert [seen.get(key) for key in KEYS] == [
        "192.0.2.7",
        "https",
        "on",
        "b.wild.test",
        "444",
        "b.wild.test:444",
    ]
    assert seen["REMOTE_PORT"] == "99"
    assert {key: value for key, value in seen.items() if "FORWARDED" in key} == {
        "HTTP_X_FORWARDED_FOR": "192.0.2.7:99",
        "HTTP_X_FORWARDED_PROTO": "https",
        "HTTP_X_FORWARDED_HOST": "b.wild.test:444",
    }


def test_forwarded_is_believed(serve: Serve) -> None:
    seen = seen_by_application(
        serve,
        'Forwarded: for="[2001:db9::1]";proto=https;host=a.test\r\nX-Forwarded-For: 6.6.6.6\r\n',
        trusted_proxies=("127.0.0.0/8",),
        proxy_headers="forwarded",
    )
    assert [seen.get(key) for key in KEYS] == ["2001:db9::1", "https", "on", "a.test", "443", "a.test"]
    assert (seen["REMOTE_PORT"], "HTTP_X_FORWARDED_FOR" in seen) == ("0", False)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("X-Forwarded-Host: theirs.wild.test\r\n", 421),
        ("X-Forwarded-Host: b.test\r\n", 421),
        ("X-Forwarded-Host: a.test, b.test\r\n", 421),
        ("X-Forwarded-Host: b.test, a.test\r\n", 204),
        ("X-Forwarded-Host: a b\r\n", 400),
    ],
)
def test_a_proxys_host_must_be_ours(serve: Serve, headers: str, status: int) -> None:
    """Whose word it is doesn't matter: the wildcards of others stay theirs."""
    seen = seen_by_application(serve, headers, trusted_proxies=("127.0.0.0/8",))
    assert seen["status"] == status


def test_each_request_of_a_proxys_connection_is_somebody_elses(serve: Serve) -> None:
    """Keep-alive: the last client isn't the next one's, nor who sends what can't be understood."""
    seen: list[str] = []

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        seen.append(f"{environ['REMOTE_ADDR']} {environ['REMOTE_PORT']} {environ['wsgi.url_scheme']}")
        start_response("204 No Content", [])
        return []

    server = serve(application, share={"trusted_proxies": ("127.0.0.1/32",)})
    with server.connect() as sock:
        port = sock.getsockname()[1]
        client = Client(sock)
        for headers in (
            "X-Forwarded-For: 192.0.2.1:5\r\nX-Forwarded-Proto: https\r\n",
            "",
            "X-Forwarded-For: 192.0.2.2\r\n",
        ):
            sock.sendall(f"GET /x HTTP/1.1\r\nHost: {HOST}\r\n{headers}\r\n".encode())
            assert client.answer().status == 204
        sock.sendall(b"junk\r\n\r\n")
        assert client.answer().status == 400
    assert seen == ["192.0.2.1 5 https", f"127.0.0.1 {port} http", "192.0.2.2 0 http"]
    (line,) = [fields for _, event, fields in server.site.log.lines if event == "request refused"]  # type: ignore[attr-defined]
    assert line["client"] == "127.0.0.1"
