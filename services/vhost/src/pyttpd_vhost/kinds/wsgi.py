"""WSGI (PEP 3333), synchronous, in the thread that serves the connection.

Theory of operation: the environ is a copy of a template with a handful of keys set; `start_response` is a
method of a small object per request, so that an application which keeps it can't reach into a later response.
The head waits for the first piece of the body that isn't empty (PEP 3333 "Handling the start_response()
callable"), and shares its packet.

Who may break what: whatever the application does wrong becomes a plain 500 (or a cut body) for its client and
a traceback in its own log; nothing of it reaches the framing.
"""

from __future__ import annotations

import os
import stat
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from pyttpd import virtualenv

from pyttpd_vhost.http.body import Body
from pyttpd_vhost.http.engine import Request
from pyttpd_vhost.http.errors import ClientGone, RequestError, ResponseError
from pyttpd_vhost.http.exchange import Exchange, State
from pyttpd_vhost.http.response import Fields, status_code

if TYPE_CHECKING:
    from pyttpd.config.shares import VhostShare

    from pyttpd_vhost.site import Site, SiteLog

Environ = dict[str, Any]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]
Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

#: The environ's keys of header names. Names with an underscore get none: they could pass for others
#: ("X_Forwarded_For").
_KEYS: dict[bytes, str | None] = {}
_ODD_KEYS: dict[bytes, str | None] = {
    b"content-type": "CONTENT_TYPE",
    b"content-length": "CONTENT_LENGTH",
    b"proxy": None,
}
#: The client chooses the names.
_MAX_KEYS = 1024

_NOTHING = State.NOTHING


def load_application(share: VhostShare, log: SiteLog) -> Application:
    """Import the application of `share`: "module:attr", attr may have dots; from its root, python_path and virtualenv.

    Sets its environment. Raises whatever the import raises, and VirtualenvError.
    """
    sys.path[:0] = [share.root, *share.python_path]
    if share.virtualenv is not None:
        virtualenv.activate(virtualenv.look(share.virtualenv))
        for folder in virtualenv.unreadable():
            log.warning("not to be read by the tenant: add it to python_path, if it is needed", folder=folder)
    os.environ.update(share.env)
    module, _, attribute = (share.application or "").partition(":")
    application: Any = import_module(module)
    for name in (attribute or "application").split("."):
        application = getattr(application, name)
    if not callable(application):
        raise TypeError(f"{share.application} is not callable")
    return application  # type: ignore[no-any-return]  # whatever is callable may be one


class WsgiKind:
    """Serves one application."""

    def __init__(self, application: Application, site: Site) -> None:
        self._application = application
        self._site = site
        self._template: Environ = {
            "REQUEST_METHOD": "",
            "SCRIPT_NAME": "",
            "PATH_INFO": "",
            "QUERY_STRING": "",
            "SERVER_NAME": "",
            "SERVER_PORT": "",
            "SERVER_PROTOCOL": "",
            "SERVER_SOFTWARE": "pyttpd",
            "REMOTE_ADDR": "",
            "REMOTE_PORT": "",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": NO_INPUT,
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": False,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
            "wsgi.input_terminated": True,
        }

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
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it raises
            if type(error) is RequestError and exchange.body is not None and exchange.body.failed is error:
                status = error.status  # the client's fault, met while the application was reading
            else:
                status = 500
                self._site.stats.errors += 1
                self._report(request)
            exchange.fail(status)
        finally:
            response.closed = True

    def _environ(self, request: Request, exchange: Exchange) -> Environ:
        """Return the environ: what the head says, then what the connection and the body add."""
        environ: Environ
        if request.remembered:
            if request.memo is None:
                request.memo = self._head_environ(request)
            environ = request.memo.copy()
        else:
            environ = self._head_environ(request)
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = exchange.client
        if exchange.body is not None:
            environ["wsgi.input"] = Input(exchange.body)
        return environ

    def _head_environ(self, request: Request) -> Environ:
        environ = self._template.copy()
        environ["REQUEST_METHOD"] = request.method
        path = request.path
        if b"%" in path:
            path = unquote_to_bytes(path)
        environ["PATH_INFO"] = path.decode("latin-1")
        if request.query:
            environ["QUERY_STRING"] = request.query.decode("latin-1")
        environ["SERVER_NAME"] = request.host or self._site.share.name
        environ["SERVER_PORT"] = str(request.port) if request.port else "80"
        environ["SERVER_PROTOCOL"] = "HTTP/1.1" if request.version == 11 else "HTTP/1.0"
        for name, value in request.fields:
            try:
                key = _KEYS[name]
            except KeyError:
                key = _environ_key(name)
            if key in environ:
                # several fields of one name are a list (RFC 9110 section 5.3); cookies have their own comma
                # (RFC 6265 section 5.4)
                comma = "; " if key == "HTTP_COOKIE" else ", "
                environ[key] = f"{environ[key]}{comma}{value.decode('latin-1')}"
            elif key is not None:
                environ[key] = value.decode("latin-1")
        return environ

    def _report(self, request: Request) -> None:
        """Write the traceback to the tenant's log."""
        error = sys.exc_info()[1]
        self._site.log.warning(
            "application failed",
            method=request.method,
            target=request.target.decode("latin-1"),
            error=type(error).__name__,
        )
        try:
            traceback.print_exc(file=sys.stderr)
        except Exception:  # noqa: BLE001 - a str() that fails, a full log: the client gets its 500 all the same
            self._site.log.warning("traceback lost")


def _environ_key(name: bytes) -> str | None:
    """Return the environ's key for a header's name as sent, None if it gets none."""
    lower = name.lower()
    if lower in _ODD_KEYS:
        key = _ODD_KEYS[lower]
    else:
        key = None if b"_" in name else "HTTP_" + name.decode("ascii").upper().replace("-", "_")
    if len(_KEYS) < _MAX_KEYS:
        _KEYS[name] = key
    return key


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
        if type(result) is list and len(result) == 1 and exchange.state is _NOTHING:
            content = result[0]
            if self._fields is None:
                raise ResponseError("no start_response() before the body")
            if type(content) is not bytes:
                content = _plain(content)
            exchange.respond(self._status, self._code, self._fields, content)
            return
        if type(result) is FileWrapper and self._send_file(result):
            return
        head_only = exchange.request.method == "HEAD"
        for data in result:
            if type(data) is not bytes:
                data = _plain(data)
            if head_only and self._fields is not None:
                break  # nobody sees the rest, and it may have no end
            if data:
                self._piece(data)
        if self._fields is None:
            raise ResponseError("no start_response()")
        if exchange.state is _NOTHING:
            if self._fields.length is None and not head_only:
                exchange.respond(self._status, self._code, self._fields, b"")
                return
            exchange.begin(self._status, self._code, self._fields)
        exchange.end()

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
        try:
            fd = wrapper.filelike.fileno()
            status = os.fstat(fd)
            at = wrapper.filelike.tell()
        except (AttributeError, OSError, ValueError):
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

    __slots__ = ("_ahead", "_body")

    def __init__(self, body: Body) -> None:
        self._body = body
        self._ahead = b""  # received for readline(), not yet asked for

    def read(self, size: int | None = -1) -> bytes:
        """Return `size` bytes, fewer only at the end; all of them if `size` is negative."""
        if size is None or size < 0:
            size = sys.maxsize
        pieces = []
        if self._ahead:
            pieces.append(self._ahead[:size])
            self._ahead = self._ahead[size:]
            size -= len(pieces[0])
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
            data = self._ahead or self._body.read(_READ_SIZE)
            if not data:
                break
            end = data.find(b"\n", 0, size) + 1
            piece = data[: end or size]
            self._ahead = data[len(piece) :]
            pieces.append(piece)
            size -= len(piece)
            if end:
                break
        return b"".join(pieces)

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
