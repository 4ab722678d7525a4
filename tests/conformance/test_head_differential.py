"""The head scanner against h11 and llhttp on the same bytes. The rule and the listed differences: head_oracles.py."""

import pytest
from hypothesis import given, settings

from pyttpd.head import METHODS, Refused, scan

from conformance.head_oracles import (
    STRICTER_THAN_H11,
    STRICTER_THAN_LLHTTP,
    ask_h11,
    ask_llhttp,
    disagreement,
)
from conformance.heads import likely_heads, mutants, valid_heads

_HOST = b"Host: a\r\n"
_LINE = b"GET / HTTP/1.1\r\n"

#: For each listed difference a head that shows it, so that no entry stays when its engine has become stricter.
WITNESSES = [
    b"GET / HTTP/1.1\n" + _HOST + b"\r\n",
    b"GET /\r\n\r\n",
    b"\rGET / HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"\nGET / HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"\r\n\r\nGET / HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"GET  / HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"FOO / HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"A" * 33 + b" / HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"CONNECT a HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"GET / HTTP/1.2\r\n" + _HOST + b"\r\n",
    b"GET / HTTP/2.0\r\n" + _HOST + b"\r\n",
    b"SOURCE / ICE/1.0\r\n" + _HOST + b"\r\n",
    b"GET /a#b HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"GET * HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"GET http://u@a/ HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"GET https://a/ HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + _HOST + b"\r\n",
    _LINE + b"Host: a/b\r\n\r\n",
    _LINE + b"Host: a:0\r\n\r\n",
    _LINE + b"Host: 1.2.3\r\n\r\n",
    _LINE + b"Host: " + b"a." * 127 + b"b\r\n\r\n",
    _LINE + b"Host:\r\n\r\n",
    _LINE + b"\r\n",
    _LINE + _HOST + _HOST + b"\r\n",
    _LINE + _HOST + b"a: b\r\n c\r\n\r\n",
    _LINE + _HOST + b"a: \x01\r\n\r\n",
    _LINE + _HOST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\n",
    _LINE + _HOST + b"Content-Length: 1, 1\r\n\r\n",
    _LINE + _HOST + b"Content-Length: 9999999999999999999\r\n\r\n",
    _LINE + _HOST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    _LINE + _HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    _LINE + _HOST + b"Transfer-Encoding: gzip\r\n\r\n",
    _LINE + _HOST + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n",
    _LINE + _HOST + b"Transfer-Encoding: x y, chunked\r\n\r\n",
    _LINE + _HOST + b"a:\r\n" * 128 + b"\r\n",
    _LINE + _HOST + b"a:" + b"x" * 40000 + b"\r\n\r\n",
    b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
]


@settings(max_examples=400, deadline=None)
@given(valid_heads())
def test_valid_heads(data: bytes) -> None:
    assert disagreement(data) is None


@settings(max_examples=1000, deadline=None)
@given(likely_heads())
def test_likely_heads(data: bytes) -> None:
    assert disagreement(data) is None


@settings(max_examples=1000, deadline=None)
@given(mutants())
def test_mutants(data: bytes) -> None:
    assert disagreement(data) is None


@pytest.mark.parametrize("method", sorted(METHODS))
def test_both_engines_know_the_methods(method: bytes) -> None:
    assert disagreement(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n") is None
    assert disagreement(method + b" http://a HTTP/1.0\r\n\r\n") is None


def test_every_byte_everywhere() -> None:
    data = b"\r\nPUT /a%2?c HTTP/1.1\r\nH: x\r\nContent-Length: 5\r\nHost: a.b:8\r\nC:\r\n\r\n"
    data = data.replace(b"%2", b"%20")
    for at in range(len(data)):
        for value in [*range(48), *b":;<?@A[\\]^_`a{|}~", 0x7F, 0x80, 0xA0, 0xFF]:
            for skip in (0, 1):
                changed = data[:at] + bytes([value]) + data[at + skip :]
                assert disagreement(changed) is None, changed


def test_each_listed_difference_exists() -> None:
    reasons: dict[str, set[str]] = {"h11": set(), "llhttp": set()}
    for data in WITNESSES:
        with pytest.raises(Refused) as caught:
            scan(data, 32768)
        assert disagreement(data) is None
        for name, ask in (("h11", ask_h11), ("llhttp", ask_llhttp)):
            if ask(data).end is not None:
                reasons[name].add(caught.value.reason)
    assert reasons == {"h11": set(STRICTER_THAN_H11), "llhttp": set(STRICTER_THAN_LLHTTP)}
