"""What a worker remembers of fields (http/heads.py) never changes what it says: the same heads, to a reader that has
read others with the same fields, and to one that knows nothing.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pyttpd.head import Refused

from conformance.heads import likely_heads, valid_heads
from pyttpd_vhost.http.engine import Request
from pyttpd_vhost.http.heads import HeadReader
from pyttpd_vhost.http.llhttp import LlhttpEngine

LIMIT = 32768


def said(reader: HeadReader, data: bytes) -> object:
    """All that a reader says of `data`."""
    try:
        request = reader.read(data)
    except Refused as refused:
        return refused.status, refused.reason
    if request is None:
        return None
    return {name: getattr(request, name) for name in Request.__slots__ if name not in ("known", "kept")}


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


def test_the_memory_is_used() -> None:
    """Else the test above would show nothing."""
    reader = HeadReader(LlhttpEngine(), LIMIT)
    requests = [
        reader.read(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target) for target in (b"/a", b"/b", b"/c")
    ]
    assert requests[-1] is not None
    assert requests[-1].known is not None
