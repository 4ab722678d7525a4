"""Conditional requests (RFC 9110 section 13), for a resource that exists.

The order is that of section 13.2.2:
  1. If-Match, by strong comparison; false: 412
  2. without it, If-Unmodified-Since; false: 412
  3. If-None-Match, by weak comparison; false: 304 (we know GET and HEAD only)
  4. without it, If-Modified-Since; false: 304
  5. If-Range, by strong comparison: whether Range counts (`range_counts`)

A date that is none, or came twice, is ignored; so is a list of tags without a tag, in that nothing is in it.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping

from pyttpd_vhost.http.dates import parse_http_date

#: The fields of a request that decide what is answered, besides its path.
DECIDING = frozenset(
    {
        b"accept-encoding",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"range",
    }
)

#: Names as they were sent, with the deciding ones that they are, or None. The client chooses the names.
_KNOWN: dict[bytes, bytes | None] = {}
_MAX_KNOWN = 1024

_TAG = re.compile(rb'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')


class Outcome(enum.Enum):
    """What the conditions say."""

    PROCEED = enum.auto()
    NOT_MODIFIED = enum.auto()  # 304
    FAILED = enum.auto()  # 412


def gather(fields: Iterable[tuple[bytes, bytes]]) -> tuple[bytes | None, dict[bytes, bytes]]:
    """Return Accept-Encoding, and the other deciding fields by name, in lower case; several of one name are joined
    (section 5.3).
    """
    found: dict[bytes, bytes] = {}
    for name, value in fields:
        try:
            known = _KNOWN[name]
        except KeyError:
            known = name.lower() if name.lower() in DECIDING else None
            if len(_KNOWN) < _MAX_KNOWN:
                _KNOWN[name] = known
        if known is not None:
            found[known] = found[known] + b", " + value if known in found else value
    return found.pop(b"accept-encoding", None), found


def evaluate(fields: Mapping[bytes, bytes], etag: bytes, modified: int) -> Outcome:
    """Decide steps 1 to 4 for what has the strong tag `etag` and was modified at `modified` (s)."""
    if (tags := fields.get(b"if-match")) is not None:
        if not _listed(tags, etag, weakly=False):
            return Outcome.FAILED
    elif (date := fields.get(b"if-unmodified-since")) is not None:
        since = parse_http_date(date)
        if since is not None and modified > since:
            return Outcome.FAILED
    if (tags := fields.get(b"if-none-match")) is not None:
        if _listed(tags, etag, weakly=True):
            return Outcome.NOT_MODIFIED
    elif (date := fields.get(b"if-modified-since")) is not None:
        since = parse_http_date(date)
        if since is not None and modified <= since:
            return Outcome.NOT_MODIFIED
    return Outcome.PROCEED


def range_counts(fields: Mapping[bytes, bytes], etag: bytes, modified: int, now: float) -> bool:
    """Decide step 5.

    A date must be exactly that of the last modification, and that can be compared strongly only if no further one can
    follow within the same second (section 8.8.2.2).
    """
    condition = fields.get(b"if-range")
    if condition is None:
        return True
    if condition[-1:] == b'"':
        return condition == etag
    return parse_http_date(condition) == modified and modified < int(now)


def _listed(value: bytes, etag: bytes, *, weakly: bool) -> bool:
    """Whether `etag` is in a list of tags, or the list is "*"."""
    if value.strip() == b"*":
        return True
    return any(tag == etag and (weakly or not weak) for weak, tag in _TAG.findall(value))
