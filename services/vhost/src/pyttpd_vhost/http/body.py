"""A request's body, read by the kind while it answers.

Rules:
- Content-Length bodies are never read beyond their end; what a chunked one leaves goes back to the stream's
  `ahead`.
- `100 Continue` is sent when the first read would have to wait, not before: a kind that doesn't read refuses
  by that (RFC 9110 10.1.1).
- After an error the body stays failed: the connection ends with this request, because nobody knows where the
  next one starts.
"""

from __future__ import annotations

from pyttpd_vhost.http.chunked import ChunkedDecoder, State
from pyttpd_vhost.http.errors import ClientGone, NotThere, RequestError
from pyttpd_vhost.http.patience import Pace
from pyttpd_vhost.http.stream import BODY_READ, Stream

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

#: How much of an unread body is read and dropped to save the connection, if it is already there: one socket
#: buffer's worth.
DRAIN_LIMIT = 65536


class Body:
    """The body of one request on `stream`: `length` bytes, or as many as `decoder` finds.

    `done`: read to its end. `failed`: why it can't be; whatever the kind says then, this is the client's answer, if
    nothing was sent before (`Exchange`).
    """

    __slots__ = (
        "_decoder",
        "_expect",
        "_left",
        "_limit",
        "_pace",
        "_size",
        "_stream",
        "_wait",
        "done",
        "failed",
    )

    def __init__(
        self,
        stream: Stream,
        length: int,
        decoder: ChunkedDecoder | None,
        *,
        expect: bool,
        limit: int,
    ) -> None:
        self._stream = stream
        self._left = length  # of a counted body
        self._size = 0  # of a chunked one, so far
        self._decoder = decoder
        self._expect = expect
        self._limit = limit
        self._pace = Pace()
        self._wait = True  # for what hasn't come yet
        self.done = False
        self.failed: RequestError | None = None

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes (> 0) as soon as any are there, b"" at the end of the body.

        Raises RequestError.
        """
        if self.failed is not None:
            raise self.failed
        if self.done:
            return b""
        try:
            return (
                self._read_counted(size) if self._decoder is None else self._read_chunked(self._decoder, size)
            )
        except RequestError as error:
            self.failed = error
            raise
        except ClientGone as error:
            self.failed = RequestError(400, "the client closed in the middle of the body")
            raise self.failed from error

    def read_now(self, size: int) -> bytes | None:
        """`read` without waiting: None if nothing is there yet. Raises RequestError."""
        self._wait = False
        try:
            data = self.read(size)
        except NotThere:
            self.failed = None
            return None
        finally:
            self._wait = True
        self._stream.charge(self._pace, 0.0, len(data))
        return data

    def waited(self, seconds: float) -> float:
        """Whoever uses `read_now` has waited so long. Returns how long (s) the client may take yet.

        Raises RequestError(408).
        """
        try:
            return self._stream.charge(self._pace, seconds, 0)
        except RequestError as error:
            self.failed = error
            raise

    @property
    def trailers(self) -> list[tuple[bytes, bytes]]:
        """The trailers of a chunked body, once it is `done`; dropping them is always right (RFC 9110 6.5.1)."""
        return self._decoder.trailers if self._decoder is not None else []

    def drain(self) -> None:
        """Read and drop what has already come, at most DRAIN_LIMIT, so that it may be `done`.

        What is wrong in it counts (`failed`), that it isn't there yet doesn't.
        """
        if self.done or self.failed is not None:
            return
        if self._expect and not self._stream.ahead:
            return  # nobody has asked for it, so it may come or not
        self._expect = False
        self._wait = False
        dropped = 0
        try:
            while dropped < DRAIN_LIMIT and not self.done:
                dropped += len(self.read(BODY_READ))
        except NotThere:
            self.failed = None
        except RequestError:
            pass

    def answered(self) -> None:
        """The head of the response is out: a 100 would come too late."""
        self._expect = False

    def close(self) -> None:
        """Make later reads fail: the stream belongs to the next request."""
        if self.failed is None:
            self.failed = RequestError(400, "read after the response")

    def _more(self, size: int) -> bytes:
        if self._expect:
            self._expect = False
            self._stream.write((CONTINUE,))
            self._stream.sent -= len(CONTINUE)  # no part of the answer
        if self._wait:
            data = self._stream.wait_received(size, self._pace)
        else:
            try:
                data = self._stream.receive(size)
            except BlockingIOError:
                raise NotThere(408, "the rest of the body isn't there") from None
        if not data:
            raise RequestError(400, "the client closed in the middle of the body")
        return data

    def _read_counted(self, size: int) -> bytes:
        size = min(size, self._left)
        ahead = self._stream.ahead
        if ahead:
            self._expect = False
            data, self._stream.ahead = ahead[:size], ahead[size:]
        else:
            data = self._more(min(size, BODY_READ))
        self._left -= len(data)
        self.done = not self._left
        return data

    def _read_chunked(self, decoder: ChunkedDecoder, size: int) -> bytes:
        stream = self._stream
        while True:
            if stream.ahead:
                self._expect = False
                data, used = decoder.feed(stream.ahead, size)
                stream.ahead = stream.ahead[used:]
                self._size += len(data)
                if self._size > self._limit:
                    raise RequestError(413, "chunked body over body_limit")
                self.done = decoder.state is State.DONE
                if data:
                    return data
            if self.done:
                return b""
            stream.ahead += self._more(BODY_READ)
