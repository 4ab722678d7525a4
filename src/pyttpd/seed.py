"""A seed: a process that has imported a role once, and from which keepers of that role are forked.

Theory of operation. In plain mode a thousand tenants that sleep would each be an interpreter of its own that imports
the same modules: a quarter of a second of processor time and 25 MB for each. Instead the runner starts one seed,
`python -I -m pyttpd_vhost --seed FD`, and asks it over a socketpair for keepers, one packet for each (`Request`, with
descriptors). The seed forks a keeper that is the runner's child as it is itself (`_fork_sibling`), answers with the
pid, and waits for the next packet. The keeper does what a child of the runner does before it becomes a role's program:
a session, no terminal, its namespaces; then it runs the role as its own program would have.

What a fork costs afterwards is mostly pages: each that it writes in, if only to count a reference to what lies there,
is copied. So what is the same in all of them and takes many objects to make is made in the seed, once (`warm`).

Why that is safe. What is forked from one seed has one layout of memory, one set of canaries and one key of hash(): who
knows them of one process knows them of all. So

  1. nothing forked from a seed meets a client, a tenant's code, or what either has written: `--asleep` says so to the
     role, and a supervisor asks its keeper for an interpreter of its own (Service.wake) before it makes a prototype;
  2. the seed reads nobody but the runner, has no configuration, no secret and no descriptor but that one, and the
     environment that roles have.

In step with it: keeper.py (WAKE), service.py (`--asleep`, `--beat`), pyttpd_init/seedbed.py (who asks).
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NoReturn

from pyttpd import fdpass, metrics, namespaces, privileges
from pyttpd.confine import python_paths
from pyttpd.confine.kernel import number
from pyttpd.log import Log
from pyttpd.namespaces import TenantFiles

#: The option, and what is padding behind it: so many bytes are there for a keeper's own command line.
OPTION = "--seed"
PADDING = 2048
#: A request: paths of a view, and a door for each directory. SOCK_SEQPACKET takes as much at the least.
MAX_REQUEST = 131_072
MAX_FDS = 8
#: The answers: that it has imported everything, and then a pid for each request, or 0 for one that couldn't be forked.
READY = 0
ANSWER = struct.Struct("=i")
#: linux/sched.h
_CLONE_PARENT = 0x8000

#: The C library and Python's own functions, called without letting go of the interpreter's lock.
_held = ctypes.PyDLL(None, use_errno=True)
_held.syscall.restype = ctypes.c_long
_held.PyOS_BeforeFork.restype = _held.PyOS_AfterFork_Child.restype = _held.PyOS_AfterFork_Parent.restype = (
    None
)


@dataclass(frozen=True, slots=True)
class Request:
    """A keeper that is asked for. `arguments` without doors, which are named in the order of the descriptors; behind
    these comes that of a network namespace to join, if `joins`. Without `files` it has no namespaces of its own.
    """

    arguments: tuple[str, ...]
    doors: tuple[str, ...] = ()
    files: TenantFiles | None = None
    joins: bool = False

    def pack(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def unpack(cls, data: bytes) -> Request:
        raw = json.loads(data)
        files = raw["files"]
        if files is not None:
            root = files.pop("root")
            files = TenantFiles(root, **{key: tuple(paths) for key, paths in files.items()})
        return cls(tuple(raw["arguments"]), tuple(raw["doors"]), files, raw["joins"])


def command(module: str, fd: int) -> list[str]:
    """Return the command of a seed of `module`, which finds its end of the pair at `fd`."""
    return [sys.executable, "-I", "-m", module, OPTION, str(fd), " " * PADDING]


def run(
    program: Callable[[list[str]], int],
    module: str,
    arguments: list[str],
    warm: Callable[[], None] = lambda: None,
) -> NoReturn:
    """Be a seed; `program(arguments)` is what its children run. Ends with the runner, its parent.

    warm: makes once what all children need and keeps it, as far as it is no tenant's.
    """
    with socket.socket(fileno=int(arguments[1])) as sock:
        runner = os.getppid()
        privileges.die_with_parent(runner, signal.SIGKILL)
        privileges.set_process_name("pyttpd-seed")
        privileges.set_command_line([sys.executable, "-I", "-m", module, OPTION])
        metrics.load()
        warm()
        python = python_paths()
        gc.collect()
        gc.freeze()
        sock.send(ANSWER.pack(READY))
        while True:
            select.select([sock], [], [])
            data, fds = fdpass.recv_fds(sock, MAX_REQUEST, MAX_FDS)
            if not data:
                os._exit(0)
            request = Request.unpack(data)
            try:
                pid = _fork_sibling()
            except OSError:
                pid = 0  # there is no process to be had; whoever asks does so again
            else:
                if pid == 0:
                    sock.close()
                    _become(program, module, request, fds, runner, python)
            for fd in fds:
                os.close(fd)
            sock.send(ANSWER.pack(pid))


def _fork_sibling() -> int:
    """Fork a child of our parent's, which reaps it, instead of ours (clone(2), CLONE_PARENT); return its pid, 0 in it.

    For a process with one thread. Python is told as of any fork. The C library isn't: it would see to locks, of which
    nobody holds one here, and remembers the number of its thread, which its next fork() sets right and nothing asks
    for until then. Raises OSError.
    """
    clone = number("clone")
    assert clone is not None  # there is one on every machine that we know
    _held.PyOS_BeforeFork()
    # The flags, and nothing else: no stack, no place for numbers of threads, no storage of a thread.
    pid = int(_held.syscall(*map(ctypes.c_long, (clone, _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0))))
    code = ctypes.get_errno()
    if pid == 0:
        _held.PyOS_AfterFork_Child()
    else:
        _held.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(code, f"clone: {os.strerror(code)}")
    return pid


def _become(
    program: Callable[[list[str]], int],
    module: str,
    request: Request,
    fds: list[int],
    runner: int,
    python: tuple[str, ...],
) -> NoReturn:
    status = 2
    try:
        arguments = [*request.arguments, "--die-with", str(runner)]
        for door, fd in zip(request.doors, fds, strict=False):
            arguments += ["--door", f"{door}:{fd}"]
        privileges.set_command_line([sys.executable, "-I", "-m", module, *arguments])
        os.setsid()
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        if request.files is None:
            os.chdir("/")
        else:
            if request.joins:
                namespaces.join_network_namespace(fds[-1])
                os.close(fds[-1])
            else:
                namespaces.enter_network_namespace()
            namespaces.enter_mount_namespace(namespaces.tenant_view(request.files, python))
        status = program(arguments)
    except BaseException as error:  # noqa: BLE001 - a keeper must not come back into the seed's loop
        Log("vhost").error("cannot start", arguments=" ".join(request.arguments), error=repr(error))
    finally:
        os._exit(status)
