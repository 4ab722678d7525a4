"""A seed: a process that has imported a role once, and from which keepers of that role are forked.

Theory of operation. In plain mode a thousand tenants that sleep would each be an interpreter of its own that imports
the same modules: a quarter of a second of processor time and 25 MB for each. Instead the runner starts one seed,
`python -I -m pyttpd_vhost --seed FD`, and asks it over a socketpair for keepers, one packet for each (`Request`, with
descriptors). The seed forks twice, so that the keeper becomes the runner's child (who is the subreaper), answers with
the pid, and waits for the next packet. The keeper does what a child of the runner does before it becomes a role's
program: a session, no terminal, its namespaces; then it runs the role as its own program would have.

Why that is safe. What is forked from one seed has one layout of memory, one set of canaries and one key of hash(): who
knows them of one process knows them of all. So

  1. nothing forked from a seed meets a client, a tenant's code, or what either has written: `--asleep` says so to the
     role, and a supervisor asks its keeper for an interpreter of its own (Service.wake) before it makes a prototype;
  2. the seed reads nobody but the runner, has no configuration, no secret and no descriptor but that one, and the
     environment that roles have.

In step with it: keeper.py (WAKE), service.py (`--asleep`, `--beat`), pyttpd_init/seedbed.py (who asks).
"""

from __future__ import annotations

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


def run(program: Callable[[list[str]], int], module: str, arguments: list[str]) -> NoReturn:
    """Be a seed; `program(arguments)` is what its children run. Ends with the runner, its parent."""
    with socket.socket(fileno=int(arguments[1])) as sock:
        runner = os.getppid()
        privileges.die_with_parent(runner, signal.SIGKILL)
        privileges.set_process_name("pyttpd-seed")
        privileges.set_command_line([sys.executable, "-I", "-m", module, OPTION])
        metrics.load()
        gc.collect()
        gc.freeze()
        sock.send(ANSWER.pack(READY))
        while True:
            select.select([sock], [], [])
            data, fds = fdpass.recv_fds(sock, MAX_REQUEST, MAX_FDS)
            if not data:
                os._exit(0)
            pid = _fork(program, module, Request.unpack(data), fds, sock, runner)
            for fd in fds:
                os.close(fd)
            sock.send(ANSWER.pack(pid))


def _fork(
    program: Callable[[list[str]], int],
    module: str,
    request: Request,
    fds: list[int],
    sock: socket.socket,
    runner: int,
) -> int:
    """Fork a keeper twice; return its pid when it is the runner's child, 0 if there is no process to be had."""
    told, tell = os.pipe()
    go, let_go = os.pipe()
    try:
        between = os.fork()
        if between == 0:
            try:
                os.close(told)
                pid = os.fork()
                if pid == 0:
                    os.close(tell)
                    os.close(let_go)
                    sock.close()
                    # Before that the runner isn't our parent, whose end is to be ours.
                    os.read(go, 1)
                    os.close(go)
                    _become(program, module, request, fds, runner)
                os.write(tell, ANSWER.pack(pid))
            finally:
                os._exit(0)
        os.close(tell)
        tell = -1
        answer = os.read(told, ANSWER.size)
        os.waitpid(between, 0)
        return int(ANSWER.unpack(answer)[0]) if answer else 0
    except OSError:
        return 0
    finally:
        for fd in (told, tell, go, let_go):
            if fd >= 0:
                os.close(fd)


def _become(
    program: Callable[[list[str]], int], module: str, request: Request, fds: list[int], runner: int
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
            namespaces.enter_mount_namespace(namespaces.tenant_view(request.files))
        status = program(arguments)
    except BaseException as error:  # noqa: BLE001 - a keeper must not come back into the seed's loop
        Log("vhost").error("cannot start", arguments=" ".join(request.arguments), error=repr(error))
    finally:
        os._exit(status)
