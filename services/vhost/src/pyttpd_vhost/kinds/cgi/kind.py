"""The kind cgi: a program is run for each request (RFC 3875).

Theory of operation. The path says which program (scripts.py), the request its variables (gateway/variables.py). The
exec service starts it, so that no process of ours that has threads or an application forks for that
(execution/service.py), and gives back its standard input, output and error as pipes. Between these and the client bytes
go both ways at once (gateway/relay.py), so it doesn't matter whether a program reads first or writes first. What it
says on standard error goes to the tenant's log.

The end: its output is over and it has ended, or one of its limits has. Whatever it has left running ends with it a
moment later, and at once when its client has left or something is wrong: closing our end is all it takes
(execution/reaper.py).

    ended by a signal, or its time over      the answer is cut, or 502, 504 if nothing was sent
    any exit status                          doesn't matter, as long as there is an answer (RFC 3875 has none)

A program that is missing what it should be, owner, mode and so on, is refused with 403 and a line in the log
(execution/checks.py); so are scripts that want the connection for themselves (nph-).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pyttpd_vhost.execution.checks import CheckFailed, Identity, NotThere
from pyttpd_vhost.execution.client import Limits, Spawned, SpawnError
from pyttpd_vhost.execution.frames import Cause, TooLarge
from pyttpd_vhost.http.engine import Request
from pyttpd_vhost.http.exchange import Exchange
from pyttpd_vhost.http.response import STATUS, Fields
from pyttpd_vhost.kinds.cgi.scripts import Script, Scripts, ToFolder
from pyttpd_vhost.kinds.gateway.bodies import Source, source
from pyttpd_vhost.kinds.gateway.errors import Errors
from pyttpd_vhost.kinds.gateway.faults import BackendError, Fault
from pyttpd_vhost.kinds.gateway.kind import GatewayKind
from pyttpd_vhost.kinds.gateway.relay import READ, Event, Relay, Said, Wires
from pyttpd_vhost.tenant import DEFAULT_PATH, KEPT_ENVIRONMENT

if TYPE_CHECKING:
    from pyttpd.config.kinds import CgiOptions

    from pyttpd_vhost.site import Site

#: From the end of its output a program has so long (s) to come to its own end; how it did decides what the answer was.
AFTER_OUTPUT: Final = 1.0
#: What is read of its standard error once it has ended: what a pipe holds (pipe(7)).
_LAST_WORDS: Final = 65536

_END: Sequence[Event] = ((Said.END, b""),)


class CgiKind(GatewayKind):
    """Runs the programs of one mount. who: who runs them, and whose files are trusted; None: this process's own uid."""

    def __init__(
        self, options: CgiOptions, site: Site, mount: int = 0, path: str = "", *, who: Identity | None = None
    ) -> None:
        super().__init__(site, mount, path)
        self._options = options
        if who is None:
            who = Identity.of(os.geteuid(), os.getegid(), os.stat(options.root))
        self._scripts = Scripts(options, who)
        self._root = options.root.rstrip("/")
        self._limits = Limits(
            wall=options.max_time,
            cpu=options.max_cpu,
            memory=options.max_memory,
            processes=options.max_processes,
        )
        kept = {
            name: os.environ[name] for name in (*KEPT_ENVIRONMENT, "HOME", "TMPDIR") if name in os.environ
        }
        own = {"PATH": DEFAULT_PATH, **kept, **site.share.env, **options.env}
        self._environment = {name: os.fsencode(value) for name, value in own.items()}

    def close(self) -> None:
        """Nothing is held between two requests."""

    def ask(self, request: Request, exchange: Exchange) -> str:
        """See `GatewayKind.ask`."""
        if request.path == b"*":
            # OPTIONS of the server itself, and no path of any program (RFC 9110 section 9.3.7)
            exchange.respond(STATUS[204], 204, Fields([]), b"")
            return ""
        try:
            script = self._scripts.find(request.path_info, request.query)
        except NotThere:
            exchange.fail(404)
            return ""
        except ToFolder as moved:
            self.to_folder(moved.path, request, exchange)
            return ""
        except CheckFailed as failed:
            raise BackendError(Fault.REFUSED, f"{failed.check}: {failed.text}") from None
        except OSError as error:
            raise _of_opening(error) from None
        body = source(exchange)
        try:
            return self._converse(script, self._variables(script, request, exchange, body), exchange, body)
        finally:
            body.close()

    def _variables(
        self, script: Script, request: Request, exchange: Exchange, body: Source
    ) -> dict[str, bytes]:
        """Return the program's environment."""
        said = self.variables.of(request, exchange)
        if request.length:
            said["CONTENT_LENGTH"] = str(body.length)
        variables = self._environment.copy()
        for name, value in said.items():
            variables[name] = value.encode("latin-1")
        variables["SCRIPT_NAME"] = request.mount.encode("latin-1") + script.name
        variables["SCRIPT_FILENAME"] = script.file
        variables["DOCUMENT_ROOT"] = os.fsencode(self._root)
        variables["PATH_INFO"] = script.info
        if script.info:
            variables["PATH_TRANSLATED"] = os.fsencode(self._root) + script.info
        if script.handled:
            # php-cgi wants to know that a server has sent it here and no browser
            variables["REDIRECT_STATUS"] = b"200"
        return variables

    def _converse(self, script: Script, variables: dict[str, bytes], exchange: Exchange, body: Source) -> str:
        """Run the program. Returns what `ask` does."""
        with self._spawn(script, variables) as spawned:
            for fd in (spawned.stdin, spawned.stdout, spawned.stderr):
                os.set_blocking(fd, False)
            errors = Errors(self.site.log, self.path)
            program = Program(spawned, self._options)
            relay = Relay(exchange, program, Pipes(spawned), body, b"", errors, self._options.timeout)
            try:
                return relay.run()
            except BackendError as error:
                raise program.explained(error) from None
            finally:
                _last_words(spawned.stderr, errors)

    def _spawn(self, script: Script, variables: dict[str, bytes]) -> Spawned:
        programs = self.site.programs
        if programs is None:
            raise BackendError(Fault.UNREACHABLE, "there is no exec service")
        try:
            return programs.spawn(
                script.argv,
                variables,
                script.directory,
                limits=self._limits,
            )
        except SpawnError as error:
            fault = Fault.FULL if error.passing else Fault.UNREACHABLE
            file = script.argv[0].decode("utf-8", "backslashreplace")
            raise BackendError(fault, f"{file} was not run: {error.reason}: {error}") from None
        except TooLarge:
            raise BackendError(
                Fault.REFUSED, "more variables and arguments than a program can be given"
            ) from None


class Pipes(Wires):
    """A program's standard input, output and error."""

    __slots__ = ("_spawned",)

    def __init__(self, spawned: Spawned) -> None:
        super().__init__(spawned.stdin, spawned.stdout, spawned.stderr)
        self._spawned = spawned

    def end_writing(self) -> None:
        """See `Wires.end_writing`."""
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = self._spawned.stdin = -1


class Program:
    """One program's `Codec`: its output is the answer, as it is."""

    __slots__ = ("_left", "_options", "_spawned")

    def __init__(self, spawned: Spawned, options: CgiOptions) -> None:
        self._spawned = spawned
        self._options = options
        self._left = options.max_output

    def body(self, data: bytes) -> bytes:
        """See `Codec.body`."""
        return data

    def whole(self, data: bytes) -> bytes | None:
        """See `Codec.whole`."""
        return None

    def receive(self, data: bytes) -> Sequence[Event]:
        """See `Codec.receive`."""
        if self._options.max_output:
            self._left -= len(data)
            if self._left < 0:
                raise BackendError(Fault.OUTPUT, f"more than max_output, {self._options.max_output} bytes")
        return ((Said.OUTPUT, data),)

    def closed(self) -> Sequence[Event]:
        """See `Codec.closed`. Waits a moment: only how the program has ended tells a whole answer from half of one."""
        try:
            ended = self._spawned.ended(AFTER_OUTPUT)
        except SpawnError as error:
            raise BackendError(Fault.DIED, str(error)) from None
        if ended is None:
            return _END  # it has closed its output, and goes on for itself
        if ended.cause is Cause.WALL:
            raise BackendError(Fault.SLOW, f"not done within max_time, {self._options.max_time:g} s")
        if ended.status == -signal.SIGXCPU:
            raise BackendError(Fault.SLOW, f"it has used up max_cpu, {self._options.max_cpu} s")
        if ended.status < 0:
            raise BackendError(Fault.DIED, f"ended by signal {_signal(-ended.status)}")
        return _END

    def explained(self, error: BackendError) -> BackendError:
        """Return `error` with how the program has ended, if that may be why."""
        ended = self._spawned.result
        if ended is None or ended.status <= 0 or error.fault not in (Fault.EMPTY, Fault.MALFORMED):
            return error
        return BackendError(error.fault, f"{error.detail} (exit status {ended.status})")


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _of_opening(error: OSError) -> BackendError:
    """Return the fault of a file that can't be looked at."""
    fault = Fault.REFUSED if isinstance(error, PermissionError) else Fault.FULL
    return BackendError(fault, f"{os.fsdecode(error.filename or '')}: {os.strerror(error.errno or 0)}")


def _last_words(fd: int, errors: Errors) -> None:
    """Log what a program that has ended has said last."""
    if fd >= 0:
        try:
            for _ in range(_LAST_WORDS // READ):
                data = os.read(fd, READ)
                if not data:
                    break
                errors.feed(data)
        except OSError:
            pass  # what it has left running may still say something: nobody waits for that
        errors.end()
