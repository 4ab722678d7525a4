"""Content types."""

from __future__ import annotations

import re

import pytest

from pyttpd.config import limits

from pyttpd_vhost.media import DEFAULT, TYPES, ContentTypes


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (b"index.html", "text/html; charset=utf-8"),
        (b"a.js", "text/javascript; charset=utf-8"),
        (b"a.mjs", "text/javascript; charset=utf-8"),
        (b"a.json", "application/json; charset=utf-8"),
        (b"a.svg", "image/svg+xml; charset=utf-8"),
        (b"a.rss", "application/rss+xml; charset=utf-8"),
        (b"a.md", "text/markdown; charset=utf-8"),
        (b"a.css.map", "application/json; charset=utf-8"),
        (b"A.PNG", "image/png"),
        (b"a.b.woff2", "font/woff2"),
        (b"a.webp", "image/webp"),
        (b"a.wasm", "application/wasm"),
        (b"a.tar.gz", "application/gzip"),
        (b"sub.d/a.pdf", "application/pdf"),
        (b"", DEFAULT),
        (b"README", DEFAULT),
        (b"sub.html/README", DEFAULT),
        (b"a.", DEFAULT),
        (b"a.unheard-of", DEFAULT),
        (b"a.\xff\xc0", DEFAULT),
    ],
)
def test_content_types(name: bytes, kind: str) -> None:
    assert ContentTypes({}, "utf-8").of(name) == kind


def test_what_is_configured() -> None:
    types = ContentTypes({".gpx": "text/gpx", ".html": "text/x-mine; charset=ascii"}, "latin-1")
    assert types.of(b"a.gpx") == "text/gpx; charset=latin-1"
    assert types.of(b"a.html") == "text/x-mine; charset=ascii"
    assert types.of(b"a.css") == "text/css; charset=latin-1"
    assert ContentTypes({}, "").of(b"a.css") == "text/css"


def test_the_table() -> None:
    for suffix, kind in TYPES.items():
        assert limits.SUFFIX.fullmatch(suffix), suffix
        assert re.fullmatch(r"[a-z]+/[a-z0-9.+-]+", kind), kind
    assert len(TYPES) > 150
