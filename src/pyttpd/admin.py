"""`pyttpd reload`, for a person: says one Command on master's admin channel and prints what comes of it.

The command of the operator's machine (pyttpd-ctl) uses this, and so does master's image, where it is /usr/bin/pyttpd:
there is no shell and no more than Python there. So this needs nothing but the standard library.

Exit status: 0 done; 1 refused, or not everything serves by it; 2 wrong usage; 3 nobody could be asked.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator

from pyttpd import __version__, fdpass, memfd, peercred
from pyttpd.config.errors import printable
from pyttpd.rendezvous import SOCKET_NAME
from pyttpd.roles import ROLES, Role
from pyttpd.wire.errors import RemoteProtocolError
from pyttpd.wire.messages import (
    GREETING_VERSION,
    MAX_FRAME,
    NAME,
    OLDEST_VERSION,
    VERSION,
    Answer,
    Command,
    Goodbye,
    Hello,
    Told,
    Welcome,
    decode,
    encode,
)

DONE, FAILED, USAGE, NOBODY = 0, 1, 2, 3
#: As a shell has it of a program that SIGINT has ended.
INTERRUPTED = 130
DEFAULT_RUNTIME_DIR = "/run/pyttpd"
#: master says how it goes on, or what came of it, within this (s): a tenant's application may take a minute to load.
PATIENCE = 180.0
#: Lines of an answer longer than this are cut.
MAX_LINE = 400


class Unreachable(Exception):
    """Nobody could be asked, or nobody has answered; the text says why, and what to do."""


def user_directory(configured: str = DEFAULT_RUNTIME_DIR) -> str:
    """Return an ordinary user's runtime_dir: what is configured, unless that is the default, which only root can
    make.
    """
    if configured != DEFAULT_RUNTIME_DIR:
        return configured
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if base.startswith("/") and os.access(base, os.W_OK):
        return f"{base}/pyttpd"
    return f"/tmp/pyttpd-{os.geteuid()}"


def find(runtime_dir: str) -> str:
    """Return the path of the admin socket below `runtime_dir`, or, without one, where a tree of this user has it."""
    own = [user_directory()] if os.geteuid() and _is_ours(user_directory()) else []
    candidates = [runtime_dir] if runtime_dir else [*own, DEFAULT_RUNTIME_DIR]
    for candidate in candidates:
        for path in (f"{candidate}/admin/{SOCKET_NAME}", f"{candidate}/admin/own/{SOCKET_NAME}"):
            if os.path.exists(path):
                return path
    raise Unreachable(
        f"no admin channel below {' or '.join(candidates)}: does a tree run here? --runtime-dir, or --config, says "
        "where"
    )


def _is_ours(folder: str) -> bool:
    """Say whether a folder that nobody has named is ours: below /tmp anybody can make one, and answer in it."""
    try:
        return os.lstat(folder).st_uid == os.geteuid()
    except OSError:
        return False


def ask(path: str, command: Command, told: Callable[[str], None]) -> tuple[bool, list[str]]:
    """Say `command` at `path`; return whether it was done, and what came of it. told(line) is called meanwhile.

    Raises Unreachable.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(path)
            # Who has put the socket there could make us believe anything: it must be master, or whose tree it is.
            uid = peercred.peer(sock).uid
            folder = os.stat(os.path.dirname(os.path.dirname(path)))
            if uid not in (ROLES[Role.MASTER].uid, folder.st_uid):
                raise Unreachable(f"{path} was bound by uid {uid}, which is not master")
            sock.settimeout(PATIENCE)
            spoken = GREETING_VERSION
            fdpass.send(sock, encode(Hello("operator", "operator"), spoken))
            for frame, fd in _heard(sock):
                match decode(frame, spoken):
                    case Welcome(spoken):
                        if not OLDEST_VERSION <= spoken <= VERSION:
                            raise Unreachable(
                                f"master speaks version {spoken} of the protocol, this program {OLDEST_VERSION} to "
                                f"{VERSION}: use the `pyttpd` of master's version"
                            )
                        fdpass.send(sock, encode(command, spoken))
                    case Told(text):
                        told(text)
                    case Answer(outcome, size, digest):
                        assert fd is not None
                        try:
                            text = memfd.read(fd, size, digest).decode("utf-8", "replace")
                        finally:
                            os.close(fd)
                        return outcome == "done", [printable(line, MAX_LINE) for line in text.splitlines()]
                    case Goodbye():
                        break
    except TimeoutError:
        raise Unreachable(
            f"master has said nothing for {PATIENCE:g} s; `pyttpd status` shows how far it is"
        ) from None
    except (BrokenPipeError, ConnectionResetError):
        pass  # as if it had been closed in order
    except (OSError, RemoteProtocolError, fdpass.DescriptorLost) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Unreachable(f"{path}: {reason}") from None
    raise Unreachable(
        "master has closed the channel: it was replaced, and `pyttpd status` shows what is in force; or you may not "
        "(root may, and members of the group admin_gid)"
    )


def _heard(sock: socket.socket) -> Iterator[tuple[bytes, int | None]]:
    """Yield the frames that come until the channel ends."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            frame, fd = fdpass.recv_fd(sock, MAX_FRAME)
        except BlockingIOError:
            _wait(sock, deadline)
            continue
        if not frame:
            return
        deadline = time.monotonic() + PATIENCE
        yield frame, fd


def _wait(sock: socket.socket, deadline: float) -> None:
    import select

    if not select.select([sock], [], [], max(0.0, deadline - time.monotonic()))[0]:
        raise TimeoutError


def command(runtime_dir: str, vhost: str, *, dry_run: bool, quiet: bool = False) -> int:
    """Ask for a reload and print what comes of it; return the exit status."""

    def told(line: str) -> None:
        if not quiet:
            sys.stderr.write(f"{printable(line, MAX_LINE)}\n")
            sys.stderr.flush()

    try:
        done, text = ask(find(runtime_dir), Command("plan" if dry_run else "reload", vhost), told)
    except Unreachable as reason:
        sys.stderr.write(f"pyttpd reload: {reason}\n")
        return NOBODY
    except KeyboardInterrupt:
        sys.stderr.write(
            "\npyttpd reload: nobody waits for it any more, but it goes on: `pyttpd status` shows how far it is\n"
        )
        return INTERRUPTED
    out = sys.stdout if done else sys.stderr
    out.write("".join(f"{line}\n" for line in text))
    out.flush()
    return DONE if done else FAILED


def main(arguments: list[str]) -> int:
    """What /usr/bin/pyttpd of master's image is."""
    parser = argparse.ArgumentParser(
        prog="pyttpd", allow_abbrev=False, description="What master can be asked for."
    )
    parser.add_argument("--version", action="version", version=f"pyttpd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    reload = commands.add_parser(
        "reload",
        help="put the changed configuration in force, or make the processes of one vhost anew",
        epilog="Exit status: 0 done; 1 refused, or not everything serves by it; 2 wrong usage; 3 nobody was asked.",
    )
    reload.add_argument(
        "vhost", nargs="?", default="", help="this vhost's application; without: the configuration"
    )
    reload.add_argument("--dry-run", action="store_true", help="only say what would change")
    reload.add_argument("--quiet", "-q", action="store_true", help="only say what came of it")
    reload.add_argument(
        "--runtime-dir", default="", help=f"where the channels are (default: {DEFAULT_RUNTIME_DIR})"
    )
    values = parser.parse_args(arguments)
    if values.vhost and (values.dry_run or not NAME.match(values.vhost.encode("utf-8", "replace"))):
        parser.error("--dry-run is for the configuration" if values.dry_run else "that is not a vhost's name")
    return command(values.runtime_dir, values.vhost, dry_run=values.dry_run, quiet=values.quiet)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
