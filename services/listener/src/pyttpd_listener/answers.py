"""What the listener says by itself: to whom it can't name, or whom nobody takes. Always the last answer of a
connection.
"""

from __future__ import annotations

import time

REASONS = {
    400: "Bad Request",
    404: "Not Found",
    408: "Request Timeout",
    414: "URI Too Long",
    421: "Misdirected Request",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}
TEXTS = {
    400: "The request could not be understood.",
    404: "There is nothing at this address.",
    408: "The request did not come in time.",
    414: "The address of the request is too long.",
    421: "This server does not host the site you asked for.",
    431: "The head of the request is too large.",
    501: "The method or transfer coding of the request is not known here.",
    503: "The site is busy. Please try again in a moment.",
    505: "This version of HTTP is not spoken here.",
}
#: Seconds after which a client that met a full queue may try again.
RETRY_AFTER = 1


def _answer(status: int) -> tuple[bytes, bytes]:
    """Return the head, as far as the time of day doesn't matter, and the body."""
    reason, text = REASONS[status], TEXTS[status]
    body = (
        f"<!DOCTYPE html>\n<html lang=en><title>{status} {reason}</title>\n<h1>{reason}</h1>\n<p>{text}</p></html>\n"
    ).encode("ascii")
    retry = f"Retry-After: {RETRY_AFTER}\r\n" if status == 503 else ""
    head = (
        f"HTTP/1.1 {status} {reason}\r\nServer: pyttpd\r\nContent-Type: text/html; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\n{retry}Connection: close\r\n"
    )
    return head.encode("ascii"), body


_ANSWERS = {status: _answer(status) for status in REASONS}


def answer(status: int, *, head_only: bool = False) -> bytes:
    """Return the whole answer for `status`, without its body if it answers a HEAD request."""
    head, body = _ANSWERS.get(status) or _ANSWERS[503]
    # Python's own locale is C's unless somebody sets it, and nobody does here.
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime()).encode("ascii")
    return b"%bDate: %b\r\n\r\n%b" % (head, date, b"" if head_only else body)
