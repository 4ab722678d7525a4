"""What a worker remembers of fields (http/heads.py) never changes what it says: the same heads, to a reader that has
read others with the same fields, and to one that knows nothing.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pyttpd.head import FIELDS_LIMIT, REQUEST_LINE_LIMIT, Bounds

from conformance.heads import likely_heads, valid_heads
from pyttpd_vhost.http.heads import HeadReader
from pyttpd_vhost.http.llhttp import LlhttpEngine
from support.heads import said

LIMIT = 32768


def behind_the_line(head: bytes) -> bytes:
    return head[head.find(b"\n") + 1 :]


@settings(max_examples=1000, deadline=None)
@given(st.one_of(valid_heads(), likely_heads()), st.one_of(valid_heads(), likely_heads()), st.booleans())
def test_other_lines_before_the_same_fields(first: bytes, second: bytes, shifted: bool) -> None:
    fields = first if shifted else behind_the_line(first)
    line = second[: second.find(b"\n") + 1]
    reader = HeadReader(LlhttpEngine(), LIMIT)
    for _ in range(3):
        said(reader, first)
    for data in (first, line + fields, first + second, line + fields[:-1]):
        assert said(reader, data) == said(HeadReader(LlhttpEngine(), LIMIT), data)


@settings(max_examples=200, deadline=None)
@given(
    valid_heads(),
    st.integers(2, 60),
    st.sampled_from((b"1.1", b"1.1", b"1.0")),
    st.sampled_from(("head", "line", "fields")),
    st.integers(-1, 1),
)
def test_limits_before_the_same_fields(first: bytes, size: int, version: bytes, what: str, more: int) -> None:
    """What is known of fields from behind a short line is no way past a limit that a longer one exceeds."""
    fields = behind_the_line(first)
    line = b"GET /%b HTTP/%b\r\n" % (b"a" * size, version)
    limit = len(line + fields) + more if what == "head" else LIMIT
    bounds = Bounds(
        len(line) + more if what == "line" else REQUEST_LINE_LIMIT,
        max(2, fields.count(b"\n") - 1 + more) if what == "fields" else FIELDS_LIMIT,
    )
    reader = HeadReader(LlhttpEngine(), limit, bounds)
    for _ in range(3):
        said(reader, b"GET / HTTP/%b\r\n" % version + fields)
    for data in (line + fields, line + fields + b"x", line + fields):
        assert said(reader, data) == said(HeadReader(LlhttpEngine(), limit, bounds), data)


def test_the_memory_is_used() -> None:
    """Else the tests above would show nothing."""
    reader = HeadReader(LlhttpEngine(), LIMIT)
    requests = [
        reader.read(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target) for target in (b"/a", b"/b", b"/c")
    ]
    assert requests[-1] is not None
    assert requests[-1].known is not None
