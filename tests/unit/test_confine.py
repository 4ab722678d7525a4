"""confine() for real, each time in an interpreter of its own; what a tenant's program must still be able to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from pyttpd.confine import kernel, landlock

#: The scripts print one JSON value at the end. /tmp is the test's own, as it is a tenant's.
PRELUDE = """
import asyncio, json, multiprocessing, os, socket, subprocess, sys, tempfile, threading
from pyttpd import confine
from pyttpd.address import Address
from pyttpd.confine import Lock, confine as lock, kernel, landlock, role_policy, seal, tenant_policy
root, tmp = sys.argv[1:]

def error(action, *args, **kwargs):
    try:
        action(*args, **kwargs)
    except Exception as problem:
        return type(problem).__name__
    return "none"

def tell(value):
    print(json.dumps(value))

def be_tenant(**more):
    os.environ["TMPDIR"] = tmp
    return lock(tenant_policy(root, tmp=(tmp,), **more))
"""


def confined(tmp_path: Path, script: str, *, check: bool = True) -> Any:
    """Run `script` in a new interpreter with a `root` and a `tmp`; return what it told."""
    root, tmp = tmp_path / "root", tmp_path / "tmp"
    root.mkdir()
    tmp.mkdir()
    (root / "page").write_text("hello")
    (root / "tool").write_text("#!/bin/sh\necho from a tool\n")
    (root / "tool").chmod(0o755)
    # The directory of a script is on sys.path, and so to be read.
    (tmp_path / "program").mkdir()
    program = tmp_path / "program/program.py"
    program.write_text(PRELUDE + textwrap.dedent(script))
    done = subprocess.run(
        [sys.executable, str(program), str(root), str(tmp)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd="/",
    )
    if check:
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])
    return done


needs_landlock = pytest.mark.skipif(
    landlock.kernel_abi() < landlock.NETWORK_ABI, reason="the kernel's Landlock can't judge TCP"
)


def test_what_stands_is_told_and_true(tmp_path: Path) -> None:
    told = confined(
        tmp_path,
        """
        report = be_tenant()
        tell([str(report), report.abi, sorted(each.value for each in report.locks), kernel.capability_sets()[:3],
              kernel.prctl(kernel.PR_GET_NO_NEW_PRIVS), kernel.prctl(kernel.PR_GET_SECCOMP),
              kernel.prctl(kernel.PR_GET_DUMPABLE)])
        """,
    )
    text, abi, locks, capabilities, no_new_privs, seccomp, dumpable = told
    assert abi == landlock.kernel_abi()
    assert set(locks) >= {"capabilities", "seccomp"}
    assert "refused by" in text
    assert capabilities == [0, 0, 0]
    assert (no_new_privs, seccomp, dumpable) == (1, 2, 0)


def test_a_tenant_runs_programs(tmp_path: Path) -> None:
    told = confined(
        tmp_path,
        """
        be_tenant()
        shell = subprocess.run(["/bin/sh", "-c", "echo hi; cat; exit 3"], input=b"x", capture_output=True)
        spawned = os.posix_spawn("/bin/true", ["true"], {})
        tell([
            shell.stdout.decode(), shell.returncode,
            subprocess.check_output([f"{root}/tool"]).decode(),
            subprocess.check_output([sys.executable, "-c", "print(1)"]).decode(),
            subprocess.check_output("echo $0", shell=True).decode(),
            os.waitpid(spawned, 0)[1],
            error(subprocess.run, ["/etc/passwd"]),
        ])
        """,
    )
    assert told == ["hi\nx", 3, "from a tool\n", "1\n", "/bin/sh\n", 0, "PermissionError"]


def test_a_tenant_has_threads_and_asyncio(tmp_path: Path) -> None:
    told = confined(
        tmp_path,
        """
        from concurrent.futures import ThreadPoolExecutor
        be_tenant()
        with ThreadPoolExecutor(4) as pool:
            threads = list(pool.map(str, range(4)))

        async def main():
            echo = await asyncio.create_subprocess_exec("/bin/echo", "async", stdout=subprocess.PIPE)
            out, _ = await echo.communicate()
            ours, theirs = socket.socketpair()
            reader, writer = await asyncio.open_connection(sock=ours)
            theirs.sendall(b"over a socket\\n")
            line = await reader.readline()
            writer.close()
            theirs.close()
            return [out.decode(), line.decode(), await asyncio.to_thread(lambda: "in a thread")]

        tell([threads, asyncio.run(main())])
        """,
    )
    assert told == [["0", "1", "2", "3"], ["async\n", "over a socket\n", "in a thread"]]


def test_a_tenant_has_multiprocessing(tmp_path: Path) -> None:
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no /dev/shm")
    told = confined(
        tmp_path,
        """
        def double(x):
            return 2 * x

        if __name__ == "__main__":
            be_tenant()
            with multiprocessing.get_context("fork").Pool(2) as pool:
                doubled = pool.map(double, [1, 2])
            spawn = multiprocessing.get_context("spawn")
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=theirs.send, args=("spawned",))
            sys.modules["__main__"].__spec__ = None
            del sys.modules["__main__"].__file__  # a spawned child is not to run this script again
            process.start()
            process.join()
            tell([doubled, ours.recv(), process.exitcode])
        """,
    )
    assert told == [[2, 4], "spawned", 0]


def test_a_tenant_has_uvicorns_protocol_on_a_connection_it_was_given(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    told = confined(
        tmp_path,
        """
        be_tenant()
        import uvicorn
        from uvicorn.protocols.http.h11_impl import H11Protocol
        from uvicorn.server import ServerState

        async def app(scope, receive, send):
            await receive()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"from uvicorn"})

        async def main():
            config = uvicorn.Config(app, lifespan="off", log_level="critical")
            config.load()
            ours, theirs = socket.socketpair()
            loop = asyncio.get_running_loop()
            make = lambda: H11Protocol(config=config, server_state=ServerState(), app_state={})
            await loop.connect_accepted_socket(make, theirs)
            reader, writer = await asyncio.open_connection(sock=ours)
            writer.write(b"GET / HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n")
            answer = await reader.read()
            writer.close()
            return answer.decode()

        tell(asyncio.run(main()))
        """,
    )
    assert told.startswith("HTTP/1.1 200 OK")
    assert "from uvicorn" in told


@needs_landlock
def test_a_tenant_sees_only_its_files(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("of somebody else")
    told = confined(
        tmp_path,
        """
        be_tenant(writable=(f"{root}/uploads",)) if os.mkdir(f"{root}/uploads") is None else None
        other = os.path.join(os.path.dirname(root), "other")
        with tempfile.TemporaryFile() as scratch, open(f"{root}/uploads/new", "w") as new:
            scratch.write(b"x")
            new.write("x")
        os.rename(f"{root}/uploads/new", f"{tmp}/moved")
        tell([
            open(f"{root}/page").read(), open("/dev/null", "w").write("x"), len(open("/dev/urandom", "rb").read(4)),
            [error(open, path) for path in (other, "/proc/self/environ", "/proc/1/environ", "/sys/kernel/notes")],
            error(open, f"{root}/page", "a"), error(open, f"{root}/new", "w"), error(os.unlink, f"{root}/page"),
            error(os.listdir, "/"), error(os.mkfifo, f"{root}/fifo"), error(os.mknod, f"{tmp}/node", 0o020666),
        ])
        """,
    )
    assert told == [
        *("hello", 1, 4),
        ["PermissionError"] * 4,
        *("PermissionError",) * 6,
    ]


def test_nobody_has_a_network(tmp_path: Path) -> None:
    told = confined(
        tmp_path,
        """
        door = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(door.getsockname())
        unconnected = socket.socket()
        be_tenant()
        a, b = socket.socketpair()
        a.sendall(b"x")
        tell([
            [error(socket.socket, family) for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)],
            error(unconnected.connect, door.getsockname()), error(unconnected.bind, ("127.0.0.1", 0)),
            error(unconnected.listen), error(client.sendto, b"x", 0x20000000, door.getsockname()),
            error(client.setsockopt, socket.IPPROTO_TCP, 30, 1), error(client.sendall, b"still connected"),
            b.recv(1).decode(),
        ])
        """,
    )
    assert told == [["PermissionError"] * 3, *["PermissionError"] * 5, "none", "x"]


@needs_landlock
@pytest.mark.parametrize("one_uid", [False, True])
def test_a_tenant_with_a_database_has_that_port(tmp_path: Path, one_uid: bool) -> None:
    """The address is a matter of its network namespace, and of the egress rule (services/init/tests)."""
    told = confined(
        tmp_path,
        f"""
        one_uid = {one_uid}
        database, other = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        turned = socket.create_connection(other.getsockname())
        path = f"{{tmp}}/sock"
        door = socket.socket(socket.AF_UNIX)
        door.bind(path)
        door.listen()
        stream, datagram = [socket.socketpair(socket.AF_UNIX, kind)[0] for kind in (1, 2)]
        report = be_tenant(reach=(Address(*database.getsockname()),), one_uid=one_uid)
        def dissolve():
            import ctypes
            return ctypes.CDLL(None).connect(turned.fileno(), bytes(16), 16)
        def of(family, kind=socket.SOCK_STREAM, protocol=0):
            return error(socket.socket, family, kind, protocol)
        async def by_asyncio():
            reader, writer = await asyncio.open_connection(*database.getsockname())
            writer.close()
            await writer.wait_closed()
        tell([
            str(report.reach[0]) == "%s:%s" % database.getsockname(), "but to 127.0.0.1:" in str(report),
            error(socket.create_connection, database.getsockname()), error(asyncio.run, by_asyncio()),
            error(socket.create_connection, other.getsockname()),
            error(socket.socket().bind, ("127.0.0.1", 0)), error(socket.socket().listen),
            error(socket.socket().sendto, b"x", 0x20000000, database.getsockname()),
            of(socket.AF_INET6), of(socket.AF_INET, socket.SOCK_DGRAM), of(socket.AF_INET, 1, 262),
            of(socket.AF_NETLINK),
            dissolve(), error(turned.connect, other.getsockname()),
            error(lambda: socket.socket(socket.AF_UNIX).connect(path)), error(stream.connect, path),
            error(socket.socketpair, socket.AF_UNIX, socket.SOCK_DGRAM),
        ])
        """,
    )
    refused = "PermissionError"
    assert told[:4] == [True, True, "none", "none"]
    assert told[4:12] == [refused] * 8
    assert told[12:14] == [0, refused]
    assert told[14:] == ([refused, "OSError", refused] if one_uid else ["none", "OSError", "none"])


def test_a_kernel_that_cannot_judge_ports_opens_none(tmp_path: Path) -> None:
    told = confined(
        tmp_path,
        """
        landlock.kernel_abi = lambda: 3
        try:
            be_tenant(reach=(Address("127.0.0.1", 5432),))
        except confine.ConfineError as problem:
            tell(str(problem))
        """,
    )
    assert "Linux 6.7" in told
    assert "ABI is 3" in told


def test_a_role_runs_nothing_and_reads_what_python_needs(tmp_path: Path) -> None:
    told = confined(
        tmp_path,
        """
        report = lock(role_policy())
        from html import parser  # a late import
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
        tell([
            error(os.fork), error(os.execv, "/bin/true", ["true"]), error(os.posix_spawn, "/bin/true", ["true"], {}),
            error(open, f"{tmp}/x", "w"), error(socket.socket(socket.AF_UNIX).bind, f"{tmp}/sock"),
            error(socket.socket(socket.AF_UNIX).connect, f"{tmp}/sock"), report.connect,
        ])
        """,
    )
    assert told == [*["PermissionError"] * 5, "FileNotFoundError", True]


@pytest.mark.parametrize("abi", range(8))
def test_older_kernels(tmp_path: Path, abi: int) -> None:
    """Every Landlock ABI there has been, as far as this kernel can play it; 0 is a kernel without."""
    if abi > landlock.kernel_abi():
        pytest.skip(f"the kernel has ABI {landlock.kernel_abi()}")
    told = confined(
        tmp_path,
        f"""
        landlock.kernel_abi = lambda: {abi}
        report = be_tenant()
        tell([
            report.abi, report.network.name, report.connect, error(open, f"{{root}}/page"), error(open, "/etc/shadow-"),
            error(socket.socket(socket.AF_UNIX).connect, f"{{tmp}}/sock"),
            error(socket.socket(socket.AF_UNIX).bind, f"{{tmp}}/sock"),
        ])
        """,
    )
    told_abi, network, connect, page, _, connected, bound = told
    assert told_abi == abi
    assert page == "none"
    if abi >= landlock.NETWORK_ABI:
        assert (network, connect, connected, bound) == ("LANDLOCK", True, "FileNotFoundError", "none")
    else:
        assert (network, connect, connected, bound) == (
            "SECCOMP",
            False,
            "PermissionError",
            "PermissionError",
        )


def test_without_landlock_a_role_connects_its_channels_and_seals(tmp_path: Path) -> None:
    told = confined(
        tmp_path,
        """
        landlock.kernel_abi = lambda: 0
        report = lock(role_policy())
        early = error(socket.socket(socket.AF_UNIX).connect, f"{tmp}/sock")
        sealed = seal(report)
        late = error(socket.socket(socket.AF_UNIX).connect, f"{tmp}/sock")
        tell([report.network.name, report.connect, early, sealed.network.name, sealed.connect, late])
        """,
    )
    assert told == ["PENDING", True, "FileNotFoundError", "SECCOMP", False, "PermissionError"]


@needs_landlock
def test_with_landlock_there_is_nothing_to_seal(tmp_path: Path) -> None:
    assert confined(tmp_path, "report = lock(role_policy())\ntell(seal(report) is report)")


def test_a_process_with_threads_is_not_confined(tmp_path: Path) -> None:
    told = confined(
        tmp_path,
        """
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait)
        thread.start()
        outcome = error(be_tenant)
        stop.set()
        thread.join()
        tell([outcome, error(socket.socket, socket.AF_INET)])
        """,
    )
    assert told == ["ConfineError", "none"]


@pytest.mark.root
def test_a_uid_that_could_be_taken_back_is_no_end(tmp_path: Path) -> None:
    told = confined(tmp_path, "os.seteuid(20001)\ntell(error(lock, role_policy()))")
    assert told == "ConfineError"


@pytest.mark.root
def test_root_is_nobody_afterwards(tmp_path: Path) -> None:
    told = confined(
        tmp_path,
        """
        os.chown(f"{root}/page", 20001, 20001)
        os.chmod(f"{root}/page", 0o600)
        be_tenant()
        by_program = subprocess.run(["/bin/cat", f"{root}/page"], capture_output=True)
        tell([error(open, f"{root}/page"), error(os.chown, f"{root}/tool", 1, 1), by_program.returncode,
              kernel.capability_sets()])
        """,
    )
    assert told == ["PermissionError", "PermissionError", 1, [0, 0, 0, 0]]


@needs_landlock
def test_a_domain_can_be_signalled_from_outside_and_not_the_other_way_round(tmp_path: Path) -> None:
    told = confined(
        tmp_path,
        """
        import signal
        ours, theirs = socket.socketpair()
        supervisor, pid = os.getpid(), os.fork()
        if pid == 0:
            report = be_tenant()
            theirs.send(json.dumps([error(os.kill, supervisor, 0), report.abi]).encode())
            signal.pause()
        told, abi = json.loads(ours.recv(100))
        os.kill(pid, signal.SIGTERM)
        tell([told, abi, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])])
        """,
    )
    refused, abi, status = told
    assert refused == ("PermissionError" if abi >= landlock.SCOPE_ABI else "none")
    assert status == -15


def test_a_program_may_move_and_link_files_from_folder_to_folder(tmp_path: Path) -> None:
    """Each domain takes that away unless it says that it doesn't: also the one in which the exec service runs it."""
    told = confined(
        tmp_path,
        """
        be_tenant()
        landlock.keep_signals(landlock.kernel_abi())
        os.chdir(tmp)
        for folder in ("a", "b"):
            os.mkdir(folder)
        open("a/x", "w").close()
        tell([error(os.link, "a/x", "b/y"), error(os.rename, "a/x", "b/x"), sorted(os.listdir("b")),
              error(os.link, f"{root}/page", "b/z"), error(os.rename, "b/x", f"{root}/x")])
        """,
    )
    assert told[:3] == ["none", "none", ["x", "y"]]
    assert "none" not in told[3:]


def test_confining_twice_takes_more_away(tmp_path: Path) -> None:
    told = confined(
        tmp_path,
        """
        be_tenant()
        before = error(subprocess.run, ["/bin/true"])
        lock(role_policy())
        tell([before, error(subprocess.run, ["/bin/true"]), error(open, f"{root}/page")])
        """,
    )
    assert told[:2] == ["none", "PermissionError"]


def test_a_kernel_that_refuses_is_not_taken_for_one_that_agrees(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without no_new_privs neither Landlock nor seccomp may be used: that must end in an error, not in silence."""
    told = confined(
        tmp_path,
        """
        kernel.set_no_new_privs = lambda: None
        kernel.drop_capabilities()
        outcomes = [error(lock, role_policy(), locks=frozenset({each})) for each in (Lock.LANDLOCK, Lock.SECCOMP)]
        tell([outcomes, landlock.kernel_abi()])
        """,
    )
    outcomes, abi = told
    assert outcomes == ["ConfineError" if abi else "none", "ConfineError"]


@pytest.mark.parametrize("code", [38, 95, 1])
def test_a_kernel_without_landlock_is_known_by_its_answer(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(landlock, "syscall", refuse)
    assert landlock.kernel_abi() == 0


def test_other_errors_of_the_kernel_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(12, os.strerror(12))

    monkeypatch.setattr(landlock, "syscall", refuse)
    with pytest.raises(OSError, match="memory"):
        landlock.kernel_abi()


def test_calls_that_the_machine_lacks() -> None:
    with pytest.raises(OSError, match="capset"):
        kernel.syscall("capset", None, None)
    with pytest.raises(OSError, match="prctl"):
        kernel.prctl(-1)
