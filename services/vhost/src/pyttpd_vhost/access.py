r"""The access log: from what a worker has answered to lines that the tenant's supervisor writes.

Theory of operation. A worker makes one line for each request, gathers those of a turn and sends them as one
record over a socket (SOCK_SEQPACKET) that all workers of the tenant share. The supervisor (output.Entries)
writes them: to a file, or to its standard output, which no process of the tenant's has. So nothing that the
tenant's code prints can look like a line of the access log, and no line can stop a worker: what the socket
doesn't take is kept up to MAX_UNSENT, and then counted as lost, which is told.

What this can't promise: a worker is the tenant's own process. Code of the tenant's that takes over its worker
can send lines about requests that never were. They have the form of lines, the tenant's name, and a bound; who
needs more than the tenant's word counts at the listener (its metrics).

Forms. `combined` is Apache's and nginx's; quotes, backslashes and what isn't printable ASCII are written as
\xHH, as nginx does, so a field ends at the next quote, always. `json` is one object a line, in ASCII. Times are
UTC in both: the tenant's code can change its process' time zone. Fields are cut so that a line has at most
MAX_LINE bytes: what is written to a pipe in one piece of PIPE_BUF is not mixed with others' (pipe(7)).

Several threads may add and flush: list.append is atomic, and who finds somebody flushing leaves his lines to him.

In step with: output.py, which takes nothing but lines that `line_pattern` describes.
"""

from __future__ import annotations

import re
import select
import socket
import threading
from collections import deque
from json.encoder import encode_basestring_ascii as _json_string
from time import gmtime, monotonic, time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pyttpd_vhost.http.engine import Request

#: The longest line, its end included. PIPE_BUF on Linux.
MAX_LINE: Final = 4096
#: What is left of the parts that a client chooses, in characters as written: more than browsers send, and together less
#: than MAX_LINE.
MAX_METHOD: Final = 32
MAX_TARGET: Final = 1960
MAX_REFERER: Final = 1000
MAX_AGENT: Final = 500
_CUT: Final = "..."

#: A worker sends its lines when there are so many, or when it has sent none for so long (s): each time the supervisor
#: is woken, which on a full core takes it from whoever serves. So a quiet worker sends a line at once. That many lines
#: are one record even where browsers' names and pages stand in them (200 bytes).
BATCH: Final = 192
INTERVAL: Final = 0.05
#: The longest record: a quarter of a socket's usual buffer (net.core.wmem_default).
MAX_RECORD: Final = 49152
#: What a worker keeps while its supervisor takes nothing: a second of a busy one.
MAX_UNSENT: Final = 1 << 20
#: A record that says how many entries were lost, instead of holding some.
LOST: Final = b"\0"
#: The client has gone before a byte of the answer was sent: nginx's word for it.
CLIENT_GONE: Final = 499
#: The connection is another process's now, who knows what it answers: as after any change of protocol.
HANDED_OVER: Final = 101

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_PLAIN = re.compile(r"[ !#-\[\]-~]*")
_NOT_PLAIN = re.compile(r"[^ !#-\[\]-~]")
_BROKEN_ESCAPE = re.compile(r"\\(?:x[0-9A-F]?)?\Z")


def line_pattern(form: str, vhost: str) -> re.Pattern[bytes]:
    """Return what matches any number of whole lines of `form`, of the tenant `vhost`, and nothing else."""
    client, count = rb"[0-9A-Fa-f.:]{2,45}+", rb"[0-9]{1,18}+"
    if form == "combined":
        text = rb'"[ !#-~]*+"'
        two = b"[0-9][0-9]"  # quicker than a count
        moment = rb"\[%b/[A-Z][a-z][a-z]/%b%b:%b:%b:%b \+0000\]" % ((two,) * 6)
        line = client + rb" - - " + moment + b" " + b" ".join((text, b"[1-5]" + two, count, text, text))
    else:
        text = rb'"[ !#-\[\]-~]*+(?:\\(?:["\\bfnrt]|u[0-9a-f]{4})[ !#-\[\]-~]*+)*+"'
        parts = (
            (b"time", rb'"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z"'),
            (b"vhost", b'"%b"' % vhost.encode()),
            (b"worker", count),
            (b"client", b'"%b"' % client),
            (b"host", text),
            (b"method", text),
            (b"target", text),
            (b"protocol", rb'"(?:HTTP/1\.[01])?"'),
            (b"status", b"[1-5][0-9]{2}"),
            (b"bytes", count),
            (b"duration", rb"[0-9]{1,9}\.[0-9]{6}"),
            (b"referer", text),
            (b"agent", text),
        )
        line = rb"\{" + b",".join(b'"%b":%b' % part for part in parts) + rb"\}"
    return re.compile(rb"(?:%b\n)*+" % line)


class AccessLog:
    """A worker's end: what is the same in both forms. Owns `sock`, which it makes non-blocking."""

    #: Whether entries say how long an answer took: then `add` wants to know since when.
    timed = False

    def __init__(self, vhost: str, sock: socket.socket) -> None:
        sock.setblocking(False)
        #: What wasn't flushed yet. Always the same list.
        self.lines: list[str] = []
        self.worker = 0
        self._vhost = vhost
        self._sock = sock
        self._flushing = threading.Lock()
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._lost = 0
        self._moment = (0, "")  # a second, and what is written for it

    # Entries

    def add(self, client: str, request: Request, code: int, sent: int, since: float) -> None:
        """Add the entry of `request`, answered with `code` and `sent` bytes of a body.

        It was there at `since` (CLOCK_MONOTONIC, s), if the log is `timed`.
        """
        if request.kept is None:
            line, behind = self._of_head(request)
        else:
            kept: tuple[str, str] | None = request.kept.get(self)
            if kept is None:
                kept = request.kept[self] = self._of_head(request)
            line, behind = kept
        self._add(client, line, code, sent, since, behind)

    def add_refused(self, client: str, head: bytes, code: int, sent: int) -> None:
        """Add the entry of what isn't a request: `head` is what has come of it."""
        line = head.lstrip(b"\r\n").partition(b"\n")[0].rstrip(b"\r").decode("latin-1")
        about, behind = self._parts("", "", "", "")
        self._add(client, self._line("", line, about), code, sent, monotonic(), behind)

    def _of_head(self, request: Request) -> tuple[str, str]:
        """Return what is written of a request before what its answer says, and behind it."""
        known = request.known
        if known is None:
            about, behind = self._of_fields(request)
        else:
            kept: tuple[str, str] | None = known.kept.get(self)
            if kept is None:
                kept = known.kept[self] = self._of_fields(request)
            about, behind = kept
        return self._line(request.method, request.target.decode("latin-1"), about), behind

    def _of_fields(self, request: Request) -> tuple[str, str]:
        """Return `_parts` of a request."""
        referer = agent = ""
        for name, value in request.fields:
            if len(name) == 7 and not referer and name.lower() == b"referer":
                referer = value.decode("latin-1")
            elif len(name) == 10 and not agent and name.lower() == b"user-agent":
                agent = value.decode("latin-1")
        protocol = "HTTP/1.1" if request.version == 11 else "HTTP/1.0"
        return self._parts(protocol, request.host, referer, agent)

    def _add(self, client: str, line: str, code: int, sent: int, since: float, behind: str) -> None:
        raise NotImplementedError

    def _parts(self, protocol: str, host: str, referer: str, agent: str) -> tuple[str, str]:
        """Return what the fields of a request say: what `_line` wants, and what is written behind the answer's part."""
        raise NotImplementedError

    def _line(self, method: str, target: str, about: str) -> str:
        """Return what is written of a request before its answer. Of what isn't one, all is in `target`."""
        raise NotImplementedError

    # Sending

    def flush(self) -> None:
        """Send what was added, and what could not be sent before. Never waits."""
        while (self.lines or self._unsent or self._lost) and self._flushing.acquire(blocking=False):
            try:
                if not self.lines:
                    self._send()
                    return
                lines = self.lines
                count = len(lines)
                record = "".join(lines[:count]).encode("ascii")
                del lines[:count]
                if self._unsent or self._lost or len(record) > MAX_RECORD or not self._sent(record):
                    self._keep(record)
                    self._send()
            finally:
                self._flushing.release()

    def finish(self, within: float = 1.0) -> int:
        """Send all, waiting up to `within` s; return how many entries are lost all the same."""
        self.flush()
        end = monotonic() + within
        writable = select.poll()
        writable.register(self._sock, select.POLLOUT)
        while (self._unsent or self._lost) and (left := end - monotonic()) > 0 and writable.poll(left * 1000):
            self.flush()
        return self._lost + sum(record.count(b"\n") for record in self._unsent)

    def _sent(self, record: bytes) -> bool:
        try:
            self._sock.send(record)
        except BlockingIOError:
            return False
        except OSError:
            # The supervisor is gone, and so are we soon; or the tenant has shut its own log down.
            self._lost += record.count(b"\n")
        return True

    def _keep(self, data: bytes) -> None:
        """Keep `data` as records, as far as there is room."""
        start = 0
        while start < len(data):
            end = (
                len(data)
                if len(data) - start <= MAX_RECORD
                else data.rindex(b"\n", start, start + MAX_RECORD) + 1
            )
            record = data[start:end]
            start = end
            if self._unsent_bytes + len(record) > MAX_UNSENT:
                self._lost += record.count(b"\n")
            else:
                self._unsent.append(record)
                self._unsent_bytes += len(record)

    def _send(self) -> None:
        """Send what was kept, and then how much was lost."""
        while self._unsent:
            if not self._sent(self._unsent[0]):
                return
            self._unsent_bytes -= len(self._unsent.popleft())
        if self._lost and self._sent(LOST + b"%d" % self._lost):
            self._lost = 0


class Combined(AccessLog):
    """Apache's and nginx's form."""

    def _add(self, client: str, line: str, code: int, sent: int, since: float, behind: str) -> None:
        second, moment = self._moment
        if not 0.0 <= (now := time()) - second < 1.0:
            t = gmtime(now)
            date = f"{t.tm_mday:02}/{_MONTHS[t.tm_mon - 1]}/{t.tm_year:04}"
            moment = f" - - [{date}:{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} +0000] "
            self._moment = int(now), moment
        self.lines.append(f"{client}{moment}{line} {code} {sent} {behind}\n")

    def _parts(self, protocol: str, host: str, referer: str, agent: str) -> tuple[str, str]:
        return protocol, f'"{_escaped(referer, MAX_REFERER)}" "{_escaped(agent, MAX_AGENT)}"'

    def _line(self, method: str, target: str, about: str) -> str:
        if not method:
            return f'"{_escaped(target, MAX_TARGET)}"'
        line = f"{method} {target} {about}"
        if len(line) <= MAX_TARGET and _PLAIN.fullmatch(line):
            return f'"{line}"'  # nearly all are, and are looked at once
        return f'"{_escaped(method, MAX_METHOD)} {_escaped(target, MAX_TARGET)} {about}"'


class Json(AccessLog):
    """One object a line."""

    timed = True

    def _add(self, client: str, line: str, code: int, sent: int, since: float, behind: str) -> None:
        second, moment = self._moment
        now = time()
        if int(now) != second:
            second = int(now)
            t = gmtime(second)
            date = f"{t.tm_year:04}-{t.tm_mon:02}-{t.tm_mday:02}"
            moment = f'{{"time":"{date}T{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}'
            self._moment = second, moment
        self.lines.append(
            f'{moment}.{int((now - second) * 1000):03d}Z","vhost":"{self._vhost}","worker":{self.worker},'
            f'"client":"{client}",{line},"status":{code},"bytes":{sent},'
            f'"duration":{monotonic() - since:.6f},{behind}}}\n'
        )

    def _parts(self, protocol: str, host: str, referer: str, agent: str) -> tuple[str, str]:
        # no host has a per cent sign in it (pyttpd.head)
        about = f'"host":"{host}","method":%s,"target":%s,"protocol":"{protocol}"'
        return about, f'"referer":{_quoted(referer, MAX_REFERER)},"agent":{_quoted(agent, MAX_AGENT)}'

    def _line(self, method: str, target: str, about: str) -> str:
        return about % (_quoted(method, MAX_METHOD), _quoted(target, MAX_TARGET))


#: By the value of `access_log`.
ACCESS_LOGS: Final[dict[str, type[AccessLog]]] = {"combined": Combined, "json": Json}


def _escaped(text: str, most: int) -> str:
    """Return `text` for a field between quotes, "-" if it is empty, cut to `most` characters."""
    if len(text) <= most and _PLAIN.fullmatch(text):
        return text or "-"
    shown = _NOT_PLAIN.sub(lambda match: f"\\x{ord(match[0]):02X}", text[:most])
    if len(shown) <= most and len(text) <= most:
        return shown
    return _BROKEN_ESCAPE.sub("", shown[: most - len(_CUT)]) + _CUT


def _quoted(text: str, most: int) -> str:
    r"""Return the bytes of `text` (ISO-8859-1) as a JSON string, its content cut to `most` characters.

    UTF-8 is read as such; what isn't gets the form \xhh.
    """
    if not text.isascii():
        text = text.encode("latin-1").decode("utf-8", "backslashreplace")
    shown = _json_string(text)
    if len(shown) <= most + 2:
        return shown
    cut = most - len(_CUT)
    while len(shown) > most + 2:
        text = text[:cut]
        shown = _json_string(text + _CUT)
        cut = len(text) * most // len(shown)
    return shown
