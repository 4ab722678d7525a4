r"""The one head scanner: request line, authority and framing fields of an HTTP/1.x request, strictly.

Theory of operation
-------------------
The listener runs it on peeked bytes to learn whom a connection is for, and the vhost runs it on every request before
its engine (llhttp or h11) sees a byte. Both ask the same function, so they cannot disagree about the authority. And
what it accepts is narrower than what either engine accepts, with one end of the head and one way to frame the body,
so they cannot disagree about that either.

There are two readings of one grammar, built from the same fragments:

- `_HEAD` **accepts**: one match of one compiled expression for the whole head. A second Host, a second Content-Length
  or one beside a Transfer-Encoding are not looked for, there is just no place for them in the expression. (`_MANY` is
  the same for heads with so many fields that somebody has to count them.) There is no other way to a Head.
- `_explain` **refuses**: it goes through the head line by line, in the order of the bytes, and finds the first fault
  and the status for it. It never accepts: a complete head in which it finds no fault, but which `_HEAD` did not match,
  is refused as well. (Tests hold the two against each other; this does not happen.)

`_OPEN` is `_HEAD` cut off anywhere: a head that is only not finished costs a match or two, and not a walk in Python
for each segment that a slow client sends. The three hold the number of fields that is allowed, so they are made (once)
for each configured number: they are `head`, `many` and `open` of `Bounds`.

**Order.** The verdict on a prefix is the verdict on the whole: once refused, no further byte changes status or reason;
as long as a head can still become valid, it is None. So every fault belongs to an offset, and the lowest one counts.

**Linear time.** There is never a choice to take back. A set repeats possessively; a group repeats within an atomic
group, and its alternatives differ in their first character; what is left are optional groups, each of which differs
in its first characters from what may follow it. (No possessive groups, and no captures within atomic ones: Python
3.11.2, for one, loses its place in those.) A test counts the steps.

Tolerances, each for a reason
-----------------------------
- One empty line before the request line (RFC 9112 section 2.2). Exactly one, and CRLF.
- The request target holds what RFC 3986 allows and, because browsers and curl send them: in the path
  ``" [ ] ^ ` { | }``, in the query any visible character but ``#``, and a per cent sign without two hexadecimal digits.
  Refused stay: fragments, bytes above 0x7e, and in the path ``\ < >`` and broken per cent encodings, on which
  servers and file systems are known to disagree. Whether ``%2f``, ``%00`` or ``..`` make sense is for the kind to say.
- Host names may hold underscores, and hyphens at either end of a label; one dot may follow.

Decided for the strict side
---------------------------
- Empty Host: 400 (RFC 9110 section 4.2.1: no http URI without a host). Versions but 1.0 and 1.1: 505.
- Content-Length twice, even if equal, or as a list; Transfer-Encoding but exactly "chunked": the message is refused
  and not repaired (RFC 9112 section 6.3 allows either). A tab behind "chunked": engines make different things of it.
- An absolute-form target with https: 421, since this connection is not secured (RFC 9110 section 7.4).
- CONNECT, and methods that an engine does not know: 501 (RFC 9110 section 9.1).
- A host whose last label is a number must be an IPv4 address, as in the URL standard of browsers.
"""

from __future__ import annotations

import re
import socket
from functools import lru_cache
from typing import NamedTuple

#: Bytes of the request line with its CRLF. RFC 9112 section 3 wants 8000 at least; the rest is for method and version.
REQUEST_LINE_LIMIT = 8192
#: Field lines of a head. Browsers send about twenty, proxies add ten; Apache and nginx stop at about a hundred.
FIELDS_LIMIT = 128
#: Both are defaults (`bounds_of`); no request line is longer than the largest head (config.limits.HEAD_LIMIT).
LONGEST_LINE = 65536
#: Bytes of a method. The longest that anybody registered has 17 (UPDATEREDIRECTREF).
METHOD_LIMIT = 32
#: Characters of a host name and of one of its labels (RFC 1035 section 2.3.4, without the root's dot).
HOST_LIMIT = 253
LABEL_LIMIT = 63
#: Digits of a Content-Length: 10**18 - 1 still fits in 64 bit, signed, in every engine.
LENGTH_DIGITS = 18

#: Methods that both engines know (llhttp's list for HTTP), without CONNECT and PRI.
METHODS = frozenset(
    b"ACL BIND CHECKOUT COPY DELETE GET HEAD LINK LOCK M-SEARCH MERGE MKACTIVITY MKCALENDAR MKCOL MOVE NOTIFY OPTIONS"
    b" PATCH POST PROPFIND PROPPATCH PURGE PUT QUERY REBIND REPORT SEARCH SOURCE SUBSCRIBE TRACE UNBIND UNLINK"
    b" UNLOCK UNSUBSCRIBE".split()
)


class Head(NamedTuple):
    """What a valid head says. Offsets count from the first byte that was scanned.

    `target` is as sent. `host` is normalised: lower case, without port or trailing dot, IPv6 in brackets and in its
    canonical form; "" for HTTP/1.0 without Host. `port` is 0 when none was given. `end` is the offset just behind the
    empty line, where the body starts.
    """

    method: bytes
    target: bytes
    version: int
    host: str
    port: int
    end: int


class Refused(Exception):
    """The head is not valid. `status` is the answer it deserves; `reason` a fixed text, nothing of the client's."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason


# --- the grammar -------------------------------------------------------------------------------------------------
# In sets (inside of [...]), so that they can be put together.

_TCHAR = rb"!#$%&'*+\-.^_`|~0-9A-Za-z"  # RFC 9110 section 5.6.2
_TCHAR_PLAIN = rb"!#$%&'*+\-.^_`|~0-9ABD-GI-SU-Zabd-gi-su-z"  # those that no name of _SPECIAL starts with
_VALUE = rb"\t\x20-\x7e\x80-\xff"  # field-vchar, SP and HTAB: RFC 9110 section 5.5
_PATH = rb"!\"$&'()*+,\-./0-9:;=@A-Z\[\]\^_`a-z{|}~"  # pchar without "%", "/", and what browsers and curl send raw
_QUERY = rb"!-\"$-~"  # visible characters but "#"

_SPECIAL = rb"(?i:host|content-length|transfer-encoding)"
_OWS = rb"[ \t]*+"
_ORIGIN = rb"/[%b]*+(?>(?:%%[0-9A-Fa-f]{2}[%b]*+){0,%d})(?:\?[%b]*+)?" % (
    _PATH,
    _PATH,
    LONGEST_LINE // 3,
    _QUERY,
)  # RFC 9112 section 3.2.1
# The other forms start otherwise; _target_authority() looks into them, off the hot path.
_REQUEST = rb"(?:\r\n)?([%b]{1,%d}+) (%b|[!-.0-~][!-~]*+) HTTP/1\.(?:(1)|0)\r\n" % (
    _TCHAR,
    METHOD_LIMIT,
    _ORIGIN,
)
#: The same without the tolerated empty line, and in origin-form only (scan_line).
_LINE = re.compile(rb"([%b]{1,%d}+) (%b) HTTP/1\.(?:(1)|0)\r\n" % (_TCHAR, METHOD_LIMIT, _ORIGIN))


def _fields(run: int) -> bytes:
    """The field lines of a valid head, with at most `run` of the harmless ones in a row: so, 3 * run + 2 in all."""
    plain = rb"(?>(?:[%b][%b]*+:[%b]*+\r\n|(?!%b:)[CHTcht][%b]*+:[%b]*+\r\n){0,%d})" % (
        *(_TCHAR_PLAIN, _TCHAR, _VALUE),
        *(_SPECIAL, _TCHAR, _VALUE, run),
    )
    host = rb"(?i:host):%b([!-~]++)%b\r\n%b" % (_OWS, _OWS, plain)
    length = rb"(?i:content-length):%b[0-9]{1,%d}+%b\r\n" % (_OWS, LENGTH_DIGITS, _OWS)
    # Group 3 is the 1 of HTTP/1.1: there is no Transfer-Encoding in HTTP/1.0. No tab behind it: see _check_codings.
    chunked = rb"(?(3)(?i:transfer-encoding):%b(?i:chunked) *+\r\n|(?!))" % _OWS
    framing = rb"(?:%b|%b)%b" % (length, chunked, plain)
    return rb"%b(?:%b(?:%b)?|%b(?:%b)?)?" % (plain, host, framing, framing, host)


class Bounds:
    """How long a request line and how many fields a head may have, and the grammar with these bounds in it.

    Groups of the expressions: method, target, the 1 of HTTP/1.1, Host before the framing field, Host after it.
    """

    __slots__ = ("fields", "head", "line", "many", "open")

    def __init__(self, line: int, fields: int) -> None:
        self.line = line
        self.fields = fields
        #: `_HEAD` of the module's text: never more than `fields`.
        self.head = re.compile(rb"%b%b\r\n" % (_REQUEST, _fields((fields - 2) // 3)))
        #: `_MANY`: so many that somebody has to count.
        self.many = re.compile(rb"%b%b\r\n" % (_REQUEST, _fields(fields)))
        #: `_OPEN`, without an end: the request line is whole, and the last line is not, as far as there is one.
        self.open = re.compile(
            rb"%b%b(?:\r?|[%b]++(?::[%b]*+\r?)?)\Z" % (_REQUEST, _fields(fields), _TCHAR, _VALUE)
        )


@lru_cache(maxsize=8)  # a process has one site's or listener's; a reload another
def bounds_of(line: int, fields: int) -> Bounds:
    """Return the bounds for heads with request lines of at most `line` bytes, and at most `fields` field lines."""
    return Bounds(line, fields)


DEFAULT_BOUNDS = bounds_of(REQUEST_LINE_LIMIT, FIELDS_LIMIT)

#: For _explain: how far the characters of a line are right, be it whole or not.
_REQUEST_CHARS = re.compile(
    rb"(?:[%b]{1,%d}+(?: (?:[!-~]++(?: [HTP/0-9.]*+(?:\r\n?)?)?)?)?)?" % (_TCHAR, METHOD_LIMIT)
)
_FIELD_CHARS = re.compile(rb"(?:\r\n?|[%b]++(?::[%b]*+(?:\r\n?)?)?)?" % (_TCHAR, _VALUE))
_LONG_METHOD = re.compile(rb"[%b]{%d}" % (_TCHAR, METHOD_LIMIT + 1))
_REQUEST_LINE = re.compile(rb"([!-~]++) ([!-~]++) HTTP/([0-9]\.[0-9])\r\n")
_ORIGIN_FORM = re.compile(_ORIGIN)
_LENGTH_VALUE = re.compile(rb"[0-9]{1,%d}+" % LENGTH_DIGITS)
_CODINGS = re.compile(rb"[%b]++(?:%b,%b[%b]++){0,8}" % (_TCHAR, _OWS, _OWS, _TCHAR))

#: RFC 9112 section 3.2.2, with the schemes of RFC 9110; the authority is looked at on its own.
_ABSOLUTE_FORM = re.compile(rb"(?i:http(s)?)://([^/?#]*+)(?:%b|\?[%b]*+)?" % (_ORIGIN, _QUERY))
#: RFC 3986 section 3.2.2, the name limited to what DNS can hold; the port may be empty (section 3.2.3).
_LABEL = rb"[0-9A-Za-z_-]{1,%d}+" % LABEL_LIMIT
_AUTHORITY = re.compile(
    rb"(?:(%b(?:\.%b)*)\.?|\[([0-9A-Fa-f:.]{2,45}+)\])(?::([0-9]{0,5}+))?" % (_LABEL, _LABEL)
)
#: What the URL standard calls "ends in a number": no name, but an IPv4 address or nothing.
_NUMBER = re.compile(r"[0-9]++|0x[0-9a-f]*+")

_SLASH = ord("/")


def scan(data: bytes | bytearray, limit: int, bounds: Bounds = DEFAULT_BOUNDS) -> Head | None:
    """The head that `data` starts with; None when it is not complete yet and may still become valid.

    `limit` is the size in bytes of the largest head, with its empty line; nothing behind it is looked at. Raises
    Refused: 400, 414 (request line too long), 421 (scheme), 431 (head too long or too many fields), 501 or 505.
    """
    m = bounds.head.match(data, 0, limit)
    many = False
    if m is None:
        if len(data) < limit:
            m = bounds.open.match(data)
            if m is not None and _promising(m, data, bounds):
                return None
        m = bounds.many.match(data, 0, limit)
        if m is None:
            _explain(bytes(data[:limit]), limit, bounds)
            return None
        many = True
    method, target, one, host, late_host = m.groups()
    end = m.end()
    try:
        if host is not None or late_host is not None:
            name, port = authority(host or late_host)
        elif one is None:
            name, port = "", 0
        else:
            raise Refused(400, "no Host")
        if target[0] != _SLASH:
            name, port = _target_authority(method, target) or (name, port)
        if method in METHODS and (
            (not many and end <= bounds.line)
            or (_line_fits(m, bounds) and (not many or _count(m, data, end) <= bounds.fields + 2))
        ):
            # Head(...) says the same and takes twice as long.
            return tuple.__new__(Head, (method, target, 10 if one is None else 11, name, port, end))
    except Refused:
        pass  # There may be an earlier fault, and the earliest one counts.
    _explain(bytes(data[:limit]), limit, bounds)
    return None  # Not reached: _explain raises for every head that has its end.


def scan_line(data: bytes, end: int, bounds: Bounds = DEFAULT_BOUNDS) -> tuple[bytes, bytes, int] | None:
    """Method, target and version of the request line `data[:end]`, for who knows what follows it.

    That is: scan() has accepted the very same bytes behind another line of this version in origin-form. No field's
    verdict depends on anything else of the line, so scan() says the same of this one, as long as the head isn't too
    long as a whole. None: no such line; whether it is another one, or none, scan() says.
    """
    m = _LINE.fullmatch(data, 0, end)
    if m is None or end > bounds.line:
        return None
    method, target, one = m.groups()
    if method not in METHODS:
        return None
    return method, target, 10 if one is None else 11


@lru_cache(maxsize=1024)  # Bounded, for clients choose the keys; a miss costs about a microsecond.
def authority(raw: bytes) -> tuple[str, int]:
    """Host (normalised as in Head) and port (0: none given) of `uri-host [":" port]`.

    Raises Refused(400). Use it for names in a configuration, too: then they compare equal to those of requests.
    """
    m = _AUTHORITY.fullmatch(raw)
    if m is None:
        raise Refused(400, "empty host" if not raw else "malformed host")
    name, literal, digits = m.groups()
    port = int(digits) if digits else 0
    if digits and not 1 <= port <= 65535:
        raise Refused(400, "malformed port")
    try:
        if literal is not None:
            packed = socket.inet_pton(socket.AF_INET6, literal.decode("ascii"))
            return f"[{socket.inet_ntop(socket.AF_INET6, packed)}]", port
        host: str = name.decode("ascii").lower()
        if _NUMBER.fullmatch(host.rpartition(".")[2]):
            socket.inet_pton(socket.AF_INET, host)
    except OSError:
        raise Refused(400, "malformed address") from None
    if len(host) > HOST_LIMIT:
        raise Refused(400, "host name too long")
    return host, port


def _target_authority(method: bytes, target: bytes) -> tuple[str, int] | None:
    """What authority() says of an absolute-form target; None for the asterisk. Raises Refused for any other form."""
    if target == b"*":
        if method != b"OPTIONS":
            raise Refused(400, "asterisk target without OPTIONS")
        return None
    m = _ABSOLUTE_FORM.fullmatch(target)
    if m is None:
        raise Refused(400, "malformed target")
    secure, raw = m.groups()
    if b"@" in raw:
        raise Refused(400, "user information in the target")
    named = authority(raw)
    if secure is not None:
        raise Refused(421, "https target on an unsecured connection")
    return named


def _line_fits(m: re.Match[bytes], bounds: Bounds) -> bool:
    """Whether the request line that was matched is short enough."""
    return m.end(2) - m.start(1) + len(b" HTTP/1.1\r\n") <= bounds.line


def _count(m: re.Match[bytes], data: bytes | bytearray, end: int) -> int:
    """The lines up to `end`: request line, fields, and the empty one if it is there. As dear as matching."""
    return data.count(b"\n", m.start(1), end)


def _promising(m: re.Match[bytes], data: bytes | bytearray, bounds: Bounds) -> bool:
    """Whether nothing is wrong with an unfinished head that _OPEN matched. (False: _explain has a closer look.)"""
    method, target, _, host, late_host = m.groups()
    raw = host or late_host
    try:
        if raw is not None:
            authority(raw)
    except Refused:
        return False
    return (
        method in METHODS
        and target[0] == _SLASH
        and _line_fits(m, bounds)
        and _count(m, data, len(data)) <= bounds.fields + 1
    )


# --- the refusals ------------------------------------------------------------------------------------------------


def _explain(data: bytes, limit: int, bounds: Bounds) -> None:
    """Raise the Refused for the first fault in `data` (cut off at `limit`). Return only for a head without its end."""
    at = 2 if data[:2] in (b"\r\n", b"\r") else 0
    newline = data.find(b"\n", at)
    line = data[at : newline + 1] if newline >= 0 else data[at:]
    _check_chars(_REQUEST_CHARS, line[: bounds.line])
    if len(line) >= bounds.line + (newline >= 0) or (newline < 0 and len(data) >= limit):
        raise Refused(414, "request line too long")
    if newline < 0:
        return
    version = _check_request_line(line)
    host: bytes | None = None
    framed = False
    fields = 0
    while True:
        at = newline + 1
        newline = data.find(b"\n", at)
        line = data[at : newline + 1] if newline >= 0 else data[at:]
        _check_chars(_FIELD_CHARS, line)
        if newline < 0:
            break
        if line == b"\r\n":
            if host is None and version != b"1.0":
                raise Refused(400, "no Host")
            raise Refused(400, "malformed head")  # _HEAD would have matched; refuse in any case.
        fields += 1
        if fields > bounds.fields:
            raise Refused(431, "too many fields")
        name, _, value = line.partition(b":")
        value = value.strip(b" \t\r\n")
        match name.lower():
            case b"host":
                if host is not None:
                    raise Refused(400, "more than one Host")
                authority(value)
                host = value
            case b"content-length" | b"transfer-encoding" if framed:
                raise Refused(400, "more than one Content-Length or Transfer-Encoding")
            case b"content-length":
                if not _LENGTH_VALUE.fullmatch(value):
                    raise Refused(400, "malformed Content-Length")
                framed = True
            case b"transfer-encoding":
                _check_codings(line[line.index(b":") + 1 : -2].lstrip(b" \t").rstrip(b" "), version)
                framed = True
    if len(data) >= limit:
        raise Refused(431, "head too long")


#: Reasons for a byte that can't stand where it stands; any other one is just malformed.
_BAD_BYTES = {
    b"\n": "bare line feed or line too short",
    b"\r": "bare carriage return or line too short",
    b" ": "misplaced blank",
    b"\t": "misplaced blank",
    b"\0": "null byte",
}


def _check_chars(pattern: re.Pattern[bytes], line: bytes) -> None:
    """Refuse a line, whole or not, for its first byte that `pattern` has no place for."""
    m = pattern.match(line)
    if m is None:  # Can't be: the pattern matches nothing, too.
        raise Refused(400, "malformed line")
    bad = line[m.end() : m.end() + 1]
    if not bad:
        return
    if pattern is _REQUEST_CHARS and _LONG_METHOD.match(line):
        raise Refused(501, "method too long")
    if line.endswith(b"\r", 0, m.end()):
        bad = b"\r"  # The fault is what does not follow it.
    raise Refused(
        400, _BAD_BYTES.get(bad, "control character" if bad < b" " or bad == b"\x7f" else "malformed line")
    )


def _check_request_line(line: bytes) -> bytes:
    """The version ("1.0" or "1.1") of a whole request line of good characters. Raises Refused."""
    m = _REQUEST_LINE.fullmatch(line)
    if m is None:
        raise Refused(400, "malformed request line")
    method, target, version = m.groups()
    if version not in (b"1.0", b"1.1"):
        raise Refused(505, "unknown version")
    if method == b"CONNECT":
        if not authority(target)[1]:
            raise Refused(400, "CONNECT without a port")
        raise Refused(501, "CONNECT")
    if method not in METHODS:
        raise Refused(501, "unknown method")
    if target[0] != _SLASH:
        _target_authority(method, target)
    elif not _ORIGIN_FORM.fullmatch(target):
        raise Refused(400, "malformed target")
    return version


def _check_codings(value: bytes, version: bytes) -> None:
    """Refuse each Transfer-Encoding but "chunked" (RFC 9112 section 6.1 and 6.3).

    `value` may end in a tab: no client puts one there, and llhttp and h11 make different things of it.
    """
    if version == b"1.0":
        raise Refused(400, "Transfer-Encoding with HTTP/1.0")
    if not _CODINGS.fullmatch(value):
        raise Refused(400, "malformed Transfer-Encoding")
    *others, last = (coding.strip(b" \t").lower() for coding in value.split(b","))
    if last != b"chunked" or b"chunked" in others:
        raise Refused(400, "chunked is not the final transfer coding")
    if others:
        raise Refused(501, "unknown transfer coding")
