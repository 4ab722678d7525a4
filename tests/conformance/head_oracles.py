"""What h11 and llhttp (httptools) make of the bytes that the head scanner looks at, and where they may differ from it.

The rule: what the scanner accepts, both accept, with the same method, target, Host, end of the head and body. Where the
scanner refuses and one of them accepts, the scanner's reason stands in STRICTER, with the reason for the reason.
"""

from dataclasses import dataclass, field

import h11
import httptools

from pyttpd.head import Head, Refused, scan

LIMIT = 32768

#: The scanner's reasons for which an engine may be more lenient. Anything else is a disagreement.
STRICTER_THAN_H11 = {
    "unknown method": "h11 knows no methods, llhttp does; there are two engines, so what one refuses is refused",
    "method too long": "as above",
    "CONNECT": "no origin server has a use for it",
    "CONNECT without a port": "as above",
    "unknown version": "h11 leaves versions other than 1.0 and 1.1 to its user",
    "malformed target": "h11 takes any visible characters",
    "asterisk target without OPTIONS": "h11 doesn't look into targets",
    "user information in the target": "as above",
    "https target on an unsecured connection": "as above; RFC 9110 section 7.4",
    "malformed host": "h11 doesn't look into hosts, neither in Host nor in the target",
    "malformed port": "as above",
    "malformed address": "as above",
    "host name too long": "as above",
    "empty host": "as above",
    "more than one Content-Length or Transfer-Encoding": "h11 joins equal lengths, and overrules a length by chunked",
    "malformed Content-Length": "h11 takes a list of equal lengths, and twenty digits",
    "Transfer-Encoding with HTTP/1.0": "h11 doesn't mind; RFC 9112 section 6.1 says it is likely an attack",
    "bare line feed or line too short": "h11 takes LF for CRLF everywhere (RFC 9112 section 2.2 lets it)",
    "request line too long": "a limit",
    "head too long": "a limit",
    "too many fields": "a limit",
    "control character": "h11 takes them in values, but for the null byte and white space",
    "misplaced blank": "h11 unfolds lines that start with a blank (RFC 9112 section 5.2 lets it)",
}
STRICTER_THAN_LLHTTP = {
    "CONNECT": "no origin server has a use for it",
    "CONNECT without a port": "as above",
    "unknown version": "llhttp takes 0.9 and 2.0",
    "malformed target": "llhttp takes fragments and all visible characters",
    "asterisk target without OPTIONS": "llhttp doesn't mind",
    "user information in the target": "llhttp leaves URLs to its user",
    "https target on an unsecured connection": "as above; RFC 9110 section 7.4",
    "malformed host": "llhttp doesn't look into hosts",
    "malformed port": "as above",
    "malformed address": "as above",
    "host name too long": "as above",
    "empty host": "as above",
    "no Host": "as above",
    "more than one Host": "as above",
    "malformed Content-Length": "llhttp takes nineteen digits and more",
    "Transfer-Encoding with HTTP/1.0": "llhttp doesn't mind; RFC 9112 section 6.1 says it is likely an attack",
    "unknown transfer coding": "llhttp only wants chunked at the end",
    "malformed Transfer-Encoding": "llhttp only wants chunked at the end",
    "chunked is not the final transfer coding": "llhttp looks at the end only",
    "bare line feed or line too short": "llhttp takes some empty lines that end in LF",
    "bare carriage return or line too short": "llhttp skips any CR and LF before the request line; HTTP/0.9",
    "malformed line": "llhttp takes other protocols' names for HTTP, for instance RTSP and ICE",
    "request line too long": "a limit",
    "head too long": "a limit",
    "too many fields": "a limit",
    "misplaced blank": "llhttp takes more than one blank within the request line",
}
#: What the scanner accepts and an engine doesn't, by the scanner's own rules; the vhost's engines get heads without it.
EMPTY_LINE = b"\r\n"


@dataclass
class Seen:
    """What an engine said. `end` is None when it wants more."""

    method: bytes = b""
    target: bytes = b""
    hosts: list[bytes] = field(default_factory=list)
    body: bytes = b""
    end: int | None = None
    whole: bool = False
    upgraded: bool = False
    error: str = ""


def ask_h11(data: bytes) -> Seen:
    seen = Seen()
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=10 * LIMIT)
    connection.receive_data(data)
    try:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            seen.method, seen.target = event.method, event.target
            seen.hosts = [value for name, value in event.headers if name == b"host"]
            seen.end = len(data) - len(connection.trailing_data[0])
            while isinstance(event := connection.next_event(), h11.Data):
                seen.body += event.data
            seen.whole = isinstance(event, h11.EndOfMessage)
    except h11.RemoteProtocolError as error:
        seen.error = str(error) or "error"
    return seen


class _Callbacks:
    def __init__(self) -> None:
        self.seen = Seen()
        self.headers_complete = 0

    def on_url(self, part: bytes) -> None:
        self.seen.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"host":
            self.seen.hosts.append(value)

    def on_headers_complete(self) -> None:
        self.headers_complete += 1

    def on_body(self, part: bytes) -> None:
        self.seen.body += part

    def on_message_complete(self) -> None:
        self.seen.whole = True


def ask_llhttp(data: bytes) -> Seen:
    """What llhttp says of the first message in `data`. It is fed byte by byte: how else to find the end of the head."""
    callbacks = _Callbacks()
    parser = httptools.HttpRequestParser(callbacks)
    seen = callbacks.seen
    for at in range(len(data)):
        try:
            parser.feed_data(data[at : at + 1])
        except httptools.HttpParserUpgrade:
            seen.upgraded = True
        except httptools.HttpParserError as error:
            seen.error = str(error) or "error"
            break
        if callbacks.headers_complete and seen.end is None:
            seen.end = at + 1
            seen.method = parser.get_method()
        if seen.whole:
            break
    return seen


def disagreement(data: bytes) -> str | None:
    """None when all agree on `data`, or differ for a listed reason; else what is wrong."""
    try:
        found: Head | Refused | None = scan(data, LIMIT)
    except Refused as refused:
        found = refused
    if isinstance(found, Head):
        return _disagreement_on_accepted(data, found)
    # llhttp is asked about what is there; it has no empty line to be spared of.
    for name, seen, allowed in (
        ("h11", ask_h11(data), STRICTER_THAN_H11),
        ("llhttp", ask_llhttp(data), STRICTER_THAN_LLHTTP),
    ):
        if seen.end is None:
            continue
        if found is None:
            # Engines that take a bare LF or CR see an end where the scanner sees none; it must refuse, not wait.
            return f"{name} sees a whole head where the scanner waits for more"
        if found.reason not in allowed:
            return f"{name} accepts what the scanner refuses with {found.status}: {found.reason}"
    return None


def _disagreement_on_accepted(data: bytes, found: Head) -> str | None:
    # The vhost gives its engines the head without the empty line, which h11 refuses.
    skipped = len(EMPTY_LINE) if data.startswith(EMPTY_LINE) else 0
    head = data[skipped : found.end]
    framing = [
        line
        for line in head.lower().split(b"\r\n")
        if line.startswith((b"content-length:", b"transfer-encoding:"))
    ]
    if len(framing) > 1:
        return "the scanner accepted two framing fields"
    body = b""
    sent = b""
    if framing and framing[0].startswith(b"c"):
        length = int(framing[0].split(b":")[1])
        body = sent = b"x" * min(length, 100)
        if length > len(body):
            body = b""  # too long to be sent here: nobody may call it whole
    elif framing:
        body, sent = b"hello", b"5\r\nhello\r\n0\r\n\r\n"
    whole = not framing or bool(body) or not sent
    following = b"GET / HTTP/1.1\r\nHost: next.example\r\n\r\n" if whole else b""
    for name, ask in (("h11", ask_h11), ("llhttp", ask_llhttp)):
        seen = ask(head + sent + following)
        if seen.error or seen.end is None:
            return f"{name} refuses what the scanner accepts: {seen.error or 'wants more'}"
        if seen.end != found.end - skipped:
            return f"{name} sees the end at {seen.end}, the scanner at {found.end - skipped}"
        if (seen.method, seen.target) != (found.method, found.target):
            return (
                f"{name} sees {seen.method!r} {seen.target!r}, the scanner {found.method!r} {found.target!r}"
            )
        if len(seen.hosts) != (1 if b"\r\nhost:" in head.lower() else 0):
            return f"{name} sees {len(seen.hosts)} Hosts"
        if seen.upgraded:
            continue  # For llhttp HTTP ends with such a head. The vhost gives it heads only, and ignores Upgrade.
        if seen.whole is not whole or (whole and seen.body != body):
            return f"{name} sees another body: {seen.body!r}, {seen.whole}"
    return None
