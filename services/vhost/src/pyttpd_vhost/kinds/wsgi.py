"""WSGI (PEP 3333), synchronous, in the thread that serves the connection.

Theory of operation: the environ is a copy of a template with a handful of keys set; `start_response` is a
method of a small object per request, so that an application which keeps it can't reach into a later response.
The head waits for the first piece of the body that isn't empty (PEP 3333 "Handling the start_response()
callable"), and shares its packet.

Who may break what: whatever the application does wrong becomes a plain 500 (or a cut body) for its client and
a traceback in its own log; nothing of it reaches the framing. That includes what is meant to end a process
(SystemExit, KeyboardInterrupt): a request doesn't end a worker.

What the environ says of the request, and what it doesn't, is gateway/variables.py's: the same as for CGI.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pyttpd_vhost.http.body import Body
from pyttpd_vhost.http.engine import Request
from pyttpd_vhost.http.errors import ClientGone, RequestError, ResponseError
from pyttpd_vhost.http.exchange import Exchange, State
from pyttpd_vhost.http.response import Fields, status_code
from pyttpd_vhost.kinds.gateway.variables import COMMON, Variables

if TYPE_CHECKING:
    from pyttpd_vhost.site import Site

Environ = dict[str, Any]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]
Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

#: An exception's causes that are looked at: frameworks wrap once or twice.
_MAX_CAUSES = 8

_NOTHING, _DONE = State.NOTHING, State.DONE


class WsgiKind:
    """Serves one application."""

    def __init__(self, application: Application, site: Site) -> None:
        self._application = application
        self._site = site
        self.variables = Variables(
            site,
            {
                **COMMON,
                "RAW_URI": "",  # gunicorn's name for REQUEST_URI
                "wsgi.version": (1, 0),
                "wsgi.url_scheme": "http",
                "wsgi.input": NO_INPUT,
                "wsgi.errors": sys.stderr,
                "wsgi.multithread": site.share.pool.max_threads > 1,
                # also with max_workers = 1: a worker's replacement serves while it finishes
                "wsgi.multiprocess": True,
                "wsgi.run_once": False,
                "wsgi.file_wrapper": FileWrapper,
                "wsgi.input_terminated": True,
            },
        )

    def handle(self, request: Request, exchange: Exchange) -> None:
        """See `Kind.handle`."""
        response = _Response(exchange)
        try:
            result = self._application(self._environ(request, exchange), response.start_response)
            try:
                response.send(result)
            finally:
                # a list has none, and asking costs
                if type(result) is not list and (close := getattr(result, "close", None)) is not None:
                    close()
        except ClientGone:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it raises
            failed = None if exchange.body is None else exchange.body.failed
            if failed is not None and _comes_of(error, failed):
                status = failed.status  # the client's fault, met while the application was reading
            else:
                status = 500
                exchange.site.stats.errors += 1  # a thread's own counter
                self._report(error, request, exchange)
            if exchange.state is not _DONE:  # else close() has failed, and the client has what it asked for
                exchange.fail(status)
        finally:
            response.closed = True

    def _environ(self, request: Request, exchange: Exchange) -> Environ:
        """Return the environ: what the head says, then what the connection and the body add."""
        environ: Environ = self.variables.of_head(request)
        environ["RAW_URI"] = environ["REQUEST_URI"]
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = exchange.client
        if exchange.origin is not None:
            self.variables.apply_origin(environ, exchange.origin, request)
            environ["wsgi.url_scheme"] = exchange.origin.scheme
        if exchange.body is not None:
            environ["wsgi.input"] = Input(exchange.body)
        return environ

    def _report(self, error: BaseException, request: Request, exchange: Exchange) -> None:
        """Write the traceback to the tenant's log."""
        try:
            trace = "".join(traceback.format_exception(error))
        except BaseException:  # noqa: BLE001 - it is the tenant's object: the client gets its 500 all the same
            trace = "the traceback can't be shown"
        self._site.log.warning(
            "application failed",
            method=request.method,
            target=request.target.decode("latin-1"),
            client=exchange.client[0],
            error=type(error).__name__,
            traceback=trace,
        )


def _comes_of(error: BaseException, cause: RequestError) -> bool:
    """Whether `error` is `cause`, or what a framework has made of it."""
    found: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if found is cause or found is None:
            break
        found = found.__cause__ or found.__context__
    return found is cause


class _Response:
    """The application's end of one response."""

    __slots__ = ("_code", "_exchange", "_fields", "_status", "closed")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._fields: Fields | None = None
        self._status = ""
        self._code = 0
        self.closed = False

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        """PEP 3333's."""
        if self.closed:
            raise ResponseError("start_response() after the response")
        if exc_info is not None:
            try:
                if self._exchange.state is not _NOTHING and exc_info[1] is not None:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # no circle through this frame
        elif self._fields is not None:
            raise ResponseError("start_response() called twice without exc_info")
        self._code = status_code(status)
        self._fields = Fields(headers)
        self._status = status
        return self.write

    def write(self, data: bytes) -> None:
        """PEP 3333's, for old applications."""
        if self.closed:
            raise ResponseError("write() after the response")
        if type(data) is not bytes:
            data = _plain(data)
        if data:
            self._piece(data)

    def send(self, result: Iterable[bytes]) -> None:
        """Send what the application returned."""
        exchange = self._exchange
        if type(result) is list:
            if len(result) == 1 and exchange.state is _NOTHING:
                content = result[0]
                if type(content) is bytes and content and self._fields is not None:
                    # a list has no close() that runs behind it
                    exchange.respond(self._status, self._code, self._fields, content, last=True)
                else:
                    self._only(content)
                return
        elif type(result) is FileWrapper:
            if self._send_file(result):
                return
        elif exchange.state is _NOTHING and _length(result) == 1:
            self._only(next(iter(result), b""))
            return
        head_only = exchange.request.method == "HEAD"
        for data in result:
            if type(data) is not bytes:
                data = _plain(data)
            if head_only and self._fields is not None:
                break  # nobody sees the rest, and it may have no end
            if data:
                full = exchange.full
                self._piece(data)
                if full:
                    break  # the same; but what comes after the last piece is run
        if self._fields is None:
            raise ResponseError("no start_response()")
        if exchange.state is _NOTHING:
            if self._fields.length is None and not head_only:
                exchange.respond(self._status, self._code, self._fields, b"")
                return
            exchange.begin(self._status, self._code, self._fields)
        exchange.end()

    def _only(self, content: bytes) -> None:
        """Send a response whose body is this piece and no other."""
        if self._fields is None:
            raise ResponseError("no start_response() before the body")
        if type(content) is not bytes:
            content = _plain(content)
        exchange = self._exchange
        if not content and self._fields.length is None and exchange.request.method == "HEAD":
            # says nothing of the length that GET would have had
            exchange.begin(self._status, self._code, self._fields)
            exchange.end()
        else:
            exchange.respond(self._status, self._code, self._fields, content)

    def _piece(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange.state is _NOTHING:
            if self._fields is None:
                raise ResponseError("no start_response() before the body")
            exchange.begin(self._status, self._code, self._fields, data)
        else:
            exchange.write(data)

    def _send_file(self, wrapper: FileWrapper) -> bool:
        """Send a regular file by sendfile(2). False: it isn't one, iterate."""
        if self._fields is None or self._exchange.state is not _NOTHING:
            return False
        file = _plain_file(wrapper.filelike)
        if file is None:
            return False
        try:
            file.flush()
            fd = file.fileno()
            status = os.fstat(fd)
            at = file.tell()
        except (OSError, ValueError):
            return False
        count = status.st_size - at
        if not stat.S_ISREG(status.st_mode) or count < 0:
            return False
        if self._fields.length is not None:
            if self._fields.length > count:
                return False  # iterating finds out, and the exchange ends it as it must
            count = self._fields.length
        # a duplicate, because the application's close() comes before the last byte is sent
        self._exchange.send_file(self._status, self._code, self._fields, os.dup(fd), at, count)
        return True


def _length(result: object) -> int:
    """Return how many pieces a result says it has, -1 if it doesn't say."""
    try:
        return len(result)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        return -1


def _plain_file(filelike: object) -> io.FileIO | io.BufferedReader | io.BufferedRandom | None:
    """Return the file whose read() gives what its descriptor does, None if `filelike` isn't surely one.

    By its exact type: a GzipFile has a descriptor, too, and that has other bytes than its read() returns.
    """
    temporary = getattr(sys.modules.get("tempfile"), "_TemporaryFileWrapper", None)
    if temporary is not None and type(filelike) is temporary:
        filelike = filelike.file  # type: ignore[attr-defined]  # the file itself, wrapped to be deleted in the end
    if type(filelike) is io.FileIO:
        return filelike
    if type(filelike) in (io.BufferedReader, io.BufferedRandom) and type(filelike.raw) is io.FileIO:  # type: ignore[attr-defined]
        return filelike  # type: ignore[return-value]  # mypy doesn't narrow by "in"
    return None


def _plain(data: object) -> bytes:
    """Return bytes that are nothing but bytes: a subclass could lie about its length.

    Raises ResponseError.
    """
    if isinstance(data, bytes | bytearray | memoryview):
        return memoryview(data).tobytes()
    raise ResponseError(f"a body is made of bytes, not {type(data).__name__}")


class FileWrapper:
    """wsgi.file_wrapper: an iterator over a file, which the server may send in a better way."""

    def __init__(self, filelike: Any, block_size: int = 65536) -> None:
        self.filelike = filelike
        self.block_size = block_size
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        data: bytes = self.filelike.read(self.block_size)
        if data:
            return data
        raise StopIteration


#: The longest piece that a read without a size takes from the body at once.
_READ_SIZE = 65536


class Input:
    """wsgi.input: the body as a file.

    Waits for the client as long as it is quick enough; raises RequestError (an OSError).
    """

    __slots__ = ("_ahead", "_at", "_body")

    def __init__(self, body: Body) -> None:
        self._body = body
        # received for readline(), from `_at` on not yet asked for: lines are cut out of it, not off it
        self._ahead = b""
        self._at = 0

    def read(self, size: int | None = -1) -> bytes:
        """Return `size` bytes, fewer only at the end; all of them if `size` is negative."""
        if size is None or size < 0:
            size = sys.maxsize
        pieces = []
        if self._ahead:
            piece = self._ahead[self._at : self._at + size]
            self._used(len(piece))
            pieces.append(piece)
            size -= len(piece)
        while size > 0 and (data := self._body.read(min(size, _READ_SIZE))):
            pieces.append(data)
            size -= len(data)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readline(self, size: int | None = -1) -> bytes:
        """Return the next line with its LF, or as much of it as `size` allows."""
        if size is None or size < 0:
            size = sys.maxsize
        pieces: list[bytes] = []
        while size > 0:
            if not self._ahead:
                self._ahead = self._body.read(_READ_SIZE)
                if not self._ahead:
                    break
            stop = min(self._at + size, len(self._ahead))
            end = self._ahead.find(b"\n", self._at, stop) + 1
            piece = self._ahead[self._at : end or stop]
            self._used(len(piece))
            pieces.append(piece)
            size -= len(piece)
            if end:
                break
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        """Return the lines that are left, or about `hint` bytes of them."""
        lines = []
        total = 0
        for line in self:
            lines.append(line)
            total += len(line)
            if hint is not None and 0 < hint <= total:
                break
        return lines

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")

    def _used(self, count: int) -> None:
        self._at += count
        if self._at >= len(self._ahead):
            self._ahead, self._at = b"", 0


class _NoInput:
    """wsgi.input of a request without a body. Has no state, so that all share one."""

    __slots__ = ()

    def read(self, size: int | None = -1) -> bytes:
        return b""

    def readline(self, size: int | None = -1) -> bytes:
        return b""

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        return []

    def __iter__(self) -> Iterator[bytes]:
        return iter(())


NO_INPUT = _NoInput()
