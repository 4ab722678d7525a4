"""The rules of static, without files: paths, conditions, ranges, negotiation, patterns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyttpd.config import limits

from pyttpd_vhost.http.paths import BadPathError, normal
from pyttpd_vhost.kinds.static.conditions import Outcome, evaluate, gather, range_counts
from pyttpd_vhost.kinds.static.negotiation import SUFFIXES, choose
from pyttpd_vhost.kinds.static.paths import location, relative
from pyttpd_vhost.kinds.static.patterns import CacheControl
from pyttpd_vhost.kinds.static.ranges import MAX_RANGES, Multipart, UnsatisfiableError, parse

ETAG = b'"abc"'
MODIFIED = 784111777
DATE = b"Sun, 06 Nov 1994 08:49:37 GMT"
EARLIER = b"Sun, 06 Nov 1994 08:49:36 GMT"
LATER = b"Sunday, 06-Nov-94 08:49:38 GMT"


# ---- paths ----


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (b"/", b""),
        (b"/a", b"a"),
        (b"/a/", b"a/"),
        (b"/a/b.c", b"a/b.c"),
        (b"/a..b/c..", b"a..b/c.."),
        (b"//", b""),
        (b"//a//b//", b"a/b/"),
        (b"/./a/.", b"a/"),
        (b"/a/b/..", b"a/"),
        (b"/a/..", b""),
        (b"/a/../b", b"b"),
        (b"/%61%2Fb", b"a/b"),
        (b"/%2e/a", b"a"),
        (b"/%252e", b"%2e"),
        (b"/.well-known", b".well-known"),
        (b"/.well-known/a", b".well-known/a"),
        (b"/x/../.well-known/a", b".well-known/a"),
        (b"/.a", None),
        (b"/a/.b", None),
        (b"/a/.b/", None),
        (b"/...", None),
        (b"/.well-known/.a", None),
        (b"/a/.well-known", None),
    ],
)
def test_paths(path: bytes, found: bytes | None) -> None:
    assert relative(normal(path)) == found


@pytest.mark.parametrize(
    "path", [b"", b"*", b"a", b"/..", b"/a/../..", b"/%2e%2e", b"/\0", b"/a%00b", b"/../a"]
)
def test_what_is_no_path(path: bytes) -> None:
    with pytest.raises(BadPathError):
        relative(normal(path))


PARTS = (b"/", b".", b"..", b"%2e", b"%2F", b"a", b".a", b"%00", b"\\", b"%5c", b"%25", b"\xff")


@given(st.lists(st.sampled_from(PARTS)))
def test_no_path_leads_out(parts: list[bytes]) -> None:
    try:
        path = relative(normal(b"/" + b"".join(parts)))
    except BadPathError:
        return
    if path is not None:
        assert path[:1] != b"/"
        assert b"//" not in path
        assert b"\0" not in path
        components = path.split(b"/")
        assert not any(component[:1] == b"." for component in components)
        target = location("", path.rstrip(b"/"), b"") if path.rstrip(b"/") else "/"
        assert target[0] == "/"
        assert target[1:2] not in ("/", "\\")
        assert target.isascii()
        assert target.isprintable()


# ---- conditions ----


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({}, Outcome.PROCEED),
        ({"if-match": b"*"}, Outcome.PROCEED),
        ({"if-match": b' "x" ,, "abc"'}, Outcome.PROCEED),
        ({"if-match": b'"x,\\"abc\\",y"'}, Outcome.FAILED),
        ({"if-match": b'W/"abc"'}, Outcome.FAILED),
        ({"if-match": b""}, Outcome.FAILED),
        ({"if-match": b"abc"}, Outcome.FAILED),
        ({"if-match": b'"abc"', "if-unmodified-since": EARLIER}, Outcome.PROCEED),
        ({"if-unmodified-since": EARLIER}, Outcome.FAILED),
        ({"if-unmodified-since": DATE}, Outcome.PROCEED),
        ({"if-unmodified-since": LATER}, Outcome.PROCEED),
        ({"if-unmodified-since": b"x"}, Outcome.PROCEED),
        ({"if-none-match": b"*"}, Outcome.NOT_MODIFIED),
        ({"if-none-match": b'"x", W/"abc"'}, Outcome.NOT_MODIFIED),
        ({"if-none-match": b'"x"', "if-modified-since": LATER}, Outcome.PROCEED),
        ({"if-none-match": b'"a*"'}, Outcome.PROCEED),
        ({"if-modified-since": EARLIER}, Outcome.PROCEED),
        ({"if-modified-since": DATE}, Outcome.NOT_MODIFIED),
        ({"if-modified-since": LATER}, Outcome.NOT_MODIFIED),
        ({"if-modified-since": DATE + b", " + DATE}, Outcome.PROCEED),
        ({"if-match": b'"x"', "if-none-match": b'"abc"'}, Outcome.FAILED),
        ({"if-match": b'"abc"', "if-none-match": b'"abc"'}, Outcome.NOT_MODIFIED),
        ({"if-unmodified-since": DATE, "if-modified-since": DATE}, Outcome.NOT_MODIFIED),
    ],
)
def test_conditions(fields: dict[str, bytes], outcome: Outcome) -> None:
    assert evaluate({name.encode(): value for name, value in fields.items()}, ETAG, MODIFIED) is outcome


@pytest.mark.parametrize(
    ("condition", "counts"),
    [
        (None, True),
        (b'"abc"', True),
        (b'W/"abc"', False),
        (b'"x"', False),
        (DATE, True),
        (b"Sun Nov  6 08:49:37 1994", True),
        (EARLIER, False),
        (LATER, False),
        (b"x", False),
        (b"", False),
    ],
)
def test_if_range(condition: bytes | None, counts: bool) -> None:
    fields = {} if condition is None else {b"if-range": condition}
    assert range_counts(fields, ETAG, MODIFIED, MODIFIED + 1) is counts


def test_a_date_of_this_second_is_weak() -> None:
    assert not range_counts({b"if-range": DATE}, ETAG, MODIFIED, MODIFIED + 0.9)


def test_which_fields_decide() -> None:
    sent = [(b"Host", b"a"), (b"RANGE", b"x"), (b"If-None-Match", b'"a"'), (b"if-none-match", b'"b"')]
    decide = {b"range": b"x", b"if-none-match": b'"a", "b"'}
    assert gather(sent) == (None, decide)
    assert gather([(b"Accept-Encoding", b"br"), *sent, (b"accept-encoding", b"gzip")]) == (
        b"br, gzip",
        decide,
    )


# ---- ranges ----


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"bytes=0-0", [(0, 1)]),
        (b"bytes=0-", [(0, 10)]),
        (b"bytes=-3", [(7, 10)]),
        (b"bytes=-30", [(0, 10)]),
        (b"bytes=9-", [(9, 10)]),
        (b"bytes=9-99", [(9, 10)]),
        (b"Bytes=0-1, 3-4", [(0, 2), (3, 5)]),
        (b"bytes=0-1,,\t3-4,", [(0, 2), (3, 5)]),
        (b"bytes=8-,0-1", [(8, 10), (0, 2)]),
        (b"bytes=0-3,2-5", [(0, 4), (2, 6)]),
        (b"bytes=0-0,99-", [(0, 1)]),
        (b"bytes=" + b"0" * 5000 + b"1-" + b"0" * 50 + b"2", [(1, 3)]),
        (b"bytes=0-9999999999999999999", [(0, 10)]),
        (b"bytes=0-9,0-0", None),
        (b"bytes=" + b"0-," * 100, None),
        (b"bytes=", None),
        (b"bytes=,", None),
        (b"items=0-1", None),
        (b"", None),
        (b"0-1", None),
    ],
)
def test_ranges(value: bytes, found: list[tuple[int, int]] | None) -> None:
    assert parse(value, 10) == found


@pytest.mark.parametrize(
    "value",
    [
        b"bytes=10-",
        b"bytes=-0",
        b"bytes=5-4",
        b"bytes=a-b",
        b"bytes=-",
        b"bytes=1",
        b"bytes=0-1,x",
        b"bytes=0-1;2-3",
        b"bytes=0-1-2",
        b"bytes=+1-2",
        b"bytes=\xb2-3",
        b"bytes=10-,11-",
        b"bytes=" + b"9" * 20 + b"-",
    ],
)
def test_what_is_no_range(value: bytes) -> None:
    with pytest.raises(UnsatisfiableError):
        parse(value, 10)


def test_too_many_ranges() -> None:
    many = [f"{first}-{first}" for first in range(0, 1000, 2)]
    assert len(parse(f"bytes={','.join(many[:MAX_RANGES])}".encode(), 1000) or ()) == MAX_RANGES
    assert parse(f"bytes={','.join(many[: MAX_RANGES + 1])}".encode(), 1000) is None


def test_of_nothing() -> None:
    assert parse(b"bytes=0-", 0) is None
    assert parse(b"bytes=-5", 0) is None


@given(st.binary(max_size=60), st.integers(0, 50))
def test_ranges_lie_within(value: bytes, size: int) -> None:
    try:
        found = parse(b"bytes=" + value, size)
    except UnsatisfiableError:
        return
    for first, end in found or ():
        assert 0 <= first < end <= size
    assert sum(end - first for first, end in found or ()) <= size


def test_the_length_of_a_multipart() -> None:
    multipart = Multipart([(0, 1), (5, 9)], 10, "text/plain")
    assert multipart.length == len(multipart.heads[0] + b"x" + multipart.heads[1] + b"xxxx" + multipart.end)
    assert Multipart([(0, 1), (5, 9)], 10, "text/plain").content_type != multipart.content_type


# ---- negotiation ----


@pytest.mark.parametrize(
    ("value", "coding"),
    [
        (None, None),
        (b"", None),
        (b"gzip", "gzip"),
        (b"gzip, deflate, br, zstd", "br"),
        (b"gzip, zstd", "zstd"),
        (b"GZIP ; Q=1.0", "gzip"),
        (b"x-gzip", "gzip"),
        (b"br;q=0.5, gzip;q=0.8", "gzip"),
        (b"br;q=0, gzip", "gzip"),
        (b"br;q=0.000,gzip;q=0", None),
        (b"*", "br"),
        (b"*;q=0.1", "br"),
        (b"br;q=0, *", "zstd"),
        (b"*;q=0", None),
        (b"identity;q=1, *;q=0", None),
        (b"identity;q=0", None),
        (b"identity;q=0, gzip;q=0.001", "gzip"),
        (b"identity, gzip", "gzip"),
        (b"identity;q=0.9, gzip;q=0.5", None),
        (b"identity;q=0.5, gzip;q=0.9", "gzip"),
        (b"deflate, compress", None),
        (b"gzip;q=2", None),
        (b"gzip;q=0.0001", None),
        (b"gzip;level=9", None),
        (b"gz ip, \xff, ;q=1, br", "br"),
        (b"gzip," + b"x," * 1000, "gzip"),
    ],
)
def test_negotiation(value: bytes | None, coding: str | None) -> None:
    assert choose(value, limits.CODINGS) == coding
    assert choose(value, ()) is None


def test_every_coding_has_a_suffix() -> None:
    assert tuple(SUFFIXES) == limits.CODINGS


# ---- patterns ----


@pytest.mark.parametrize(
    ("pattern", "fits", "fits_not"),
    [
        ("*.html", [b"a.html", b"a/b.html", b".html"], [b"a.htm", b"a.html/b", b"a.HTML"]),
        ("/*.html", [b"a.html"], [b"a/b.html"]),
        ("assets/**", [b"assets/a", b"assets/a/b"], [b"assets", b"x/assets/a"]),
        ("assets/*", [b"assets/a"], [b"assets/a/b"]),
        ("**/a.js", [b"a.js", b"x/a.js", b"x/y/a.js"], [b"xa.js"]),
        ("a/**/b", [b"a/b", b"a/x/b", b"a/x/y/b"], [b"a/xb"]),
        ("?.css", [b"a.css", b"x/a.css"], [b"ab.css", b".css"]),
        ("*.{png,jpg}", [b"a.png", b"a.jpg"], [b"a.gif", b"a.{png,jpg}"]),
        ("a+b(c).[x]", [b"a+b(c).[x]"], [b"aab(c).x"]),
        ("**", [b"a", b"a/b", b"a\nb"], []),
        ("\u00e9*", ["\u00e9t\u00e9".encode(), "\u00e9".encode()], [b"e"]),
        ("{", [b"{"], [b""]),
        ("*" * 50 + "x", [b"aaax", b"a/x"], [b"a" * 4000]),
        ("*a*a*a*a", [b"aaaa", b"xaxaxaxa"], [b"a" * 200 + b"x"]),
    ],
)
def test_patterns(pattern: str, fits: list[bytes], fits_not: list[bytes]) -> None:
    rule = CacheControl({pattern: "yes"})
    assert [path for path in fits if rule.of(path) != "yes"] == []
    assert [path for path in fits_not if rule.of(path)] == []


def test_the_first_pattern_that_fits() -> None:
    rule = CacheControl({"private/*.js": "", "*.js": "immutable", "*": "no-cache"})
    assert [rule.of(path) for path in (b"private/a.js", b"a.js", b"a.css")] == ["", "immutable", "no-cache"]
