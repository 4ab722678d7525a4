"""A real PostgreSQL server for a test: its own cluster, on an address of this machine's loopback, gone afterwards."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from support.tree import free_port, plain_environment

READY_WITHIN = 20.0


def programs() -> Path:
    """Return where Debian keeps the server's programs: not on the PATH, one folder for each version."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    assert on_path is not None, "there is no PostgreSQL"
    return Path(on_path).parent


@contextlib.contextmanager
def running(name: str, password: str, host: str = "127.0.0.1") -> Iterator[int]:
    """Start a server with a user and a database of that name; yield its port."""
    bin_folder, port = programs(), free_port()
    # It refuses to run as root, and as somebody who has no name. The package has made this one.
    who = pwd.getpwnam("postgres").pw_uid if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="pyttpd-postgres-", dir="/tmp"))
    if who is not None:
        os.chown(folder, who, who)
    (folder / "password").write_text(password)
    (folder / "password").chmod(0o644)

    def run(*command: str) -> None:
        done = subprocess.run(
            command,
            cwd="/",
            user=who,
            group=who,
            env=plain_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"

    try:
        data = str(folder / "data")
        run(
            *(
                f"{bin_folder}/initdb",
                "--pgdata",
                data,
                "--username",
                name,
                "--pwfile",
                str(folder / "password"),
            ),
            *(
                "--auth-local=trust",
                "--auth-host=scram-sha-256",
                "--no-sync",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
            ),
        )
        with open(folder / "log", "wb") as log:
            server = subprocess.Popen(
                [
                    *(f"{bin_folder}/postgres", "-D", data, "-h", host, "-p", str(port), "-k", str(folder)),
                    *("-c", "fsync=off", "-c", "max_connections=20", "-c", "shared_buffers=1MB"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                user=who,
                group=who,
                env=plain_environment(),
            )
        try:
            deadline = time.monotonic() + READY_WITHIN
            ready = [f"{bin_folder}/pg_isready", "-q", "-h", host, "-p", str(port)]
            while subprocess.run(ready, check=False).returncode:
                text = (folder / "log").read_text(errors="replace")
                assert server.poll() is None and time.monotonic() < deadline, text
                time.sleep(0.05)
            run(f"{bin_folder}/createdb", "-h", str(folder), "-p", str(port), "-U", name, name)
            yield port
        finally:
            server.send_signal(signal.SIGINT)  # "fast": whoever is connected is let go of
            server.wait(READY_WITHIN)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
