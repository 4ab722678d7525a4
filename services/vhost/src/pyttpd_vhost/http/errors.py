"""What can go wrong between a client and us, and whose answer it gets."""

from __future__ import annotations


class RequestError(OSError):
    """The request can't be finished as the client sent it; `status` is its answer if none was begun.

    An OSError, because applications meet it in `wsgi.input.read()`, and that is what frameworks expect there.
    `reason` is a fixed text of ours, safe for logs.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status} {reason}")
        self.status = status
        self.reason = reason


class NotThere(RequestError):
    """Nothing more of the body has come yet."""


class ClientGone(ConnectionError):
    """The client closed, reset, or was too slow in taking its response. Nobody is left to answer."""


class ResponseError(Exception):
    """The kind (or the tenant's application) broke the rules of a response."""
