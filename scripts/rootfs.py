"""Assemble the root of one role's image: the interpreter, the standard library, role, library, no more.

Runs inside the build stage of services/<role>/Dockerfile (Debian, with python3, pip and setuptools), as
root, on a copy of the repository that holds only what Dockerfile.dockerignore lets through. The final stage
is FROM scratch and takes the folder as it is.

What an image gets:

- /usr/bin/python3 and the standard library as Debian built them: roles the part that they use, tenants all
  of it.
- The packages of the role's lock, by hash: from .cache/wheels/<role> if scripts/wheels has filled it (for
  builds that can reach no package index), else from the index that pip is configured for.
- `pyttpd` and `pyttpd-<role>`, built from source by setuptools; for the roles that a connection passes, the modules on
  its way as extension modules beside their sources (scripts/native.py).
- The closure of shared objects, asked from the dynamic loader itself (ldd), and that loader, at the paths
  where it looks.
- One line of passwd and group, so that getpwuid() of the role's own uid works.

What no image gets: a shell, a package manager, a setuid bit, a file that the role may write, another role's
code. Everything is byte-compiled with hashes instead of times, and all times are one fixed time: the same
input gives the same tree.
"""

from __future__ import annotations

import argparse
import compileall
import fnmatch
import os
import py_compile
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

STDLIB = Path(sysconfig.get_paths()["stdlib"])
#: Where Debian's interpreter looks for packages in isolated mode, too.
SITE = Path("usr/lib/python3/dist-packages")
#: One time for every file (1980-01-01, the first that zip files can hold).
EPOCH = 315532800

#: Nobody imports these at run time: tests, demos, and Debian's own start-up hook (a link into /etc).
NOT_IN_ANY = (
    "test", "idlelib", "turtledemo", "turtle.py", "lib2to3", "ensurepip", "pydoc_data", "_pyrepl",
    "sitecustomize.py", "EXTERNALLY-MANAGED", "config-*", "__phello__", "this.py", "antigravity.py",
    "lib-dynload/_test*", "lib-dynload/_ctypes_test*", "lib-dynload/xx*", "lib-dynload/_xx*",
    # The only user of Berkeley DB's 1.8 MB; dbm falls back to SQLite.
    "lib-dynload/_dbm*",
)  # fmt: skip
#: The roles answer a few frames each: no interactive tools, no other protocols, no second way to start
#: programs. (The codecs for east Asian text are 0.9 MB of C that a name such as "big5" in foreign data
#: could reach.)
NOT_IN_ROLES = (
    "asyncio", "concurrent", "curses", "dbm", "multiprocessing", "sqlite3", "tkinter", "unittest", "venv",
    "xmlrpc", "cProfile.py", "code.py", "codeop.py", "doctest.py", "ftplib.py", "imaplib.py", "mailbox.py",
    "pdb.py", "poplib.py", "profile.py", "pstats.py", "pty.py", "pydoc.py", "smtplib.py", "tabnanny.py",
    "trace.py", "tty.py", "webbrowser.py", "xml", "zipapp.py",
    "lib-dynload/_asyncio*", "lib-dynload/_codecs_*", "lib-dynload/_curses*", "lib-dynload/_sqlite3*",
    "lib-dynload/_multibytecodec*", "lib-dynload/_multiprocessing*", "lib-dynload/readline*",
)  # fmt: skip
#: What a role's locked packages import all the same, although nothing of it runs (pyroute2 in init).
KEPT_FOR = {
    "init": (
        "asyncio", "concurrent", "multiprocessing", "sqlite3", "unittest",
        "lib-dynload/_asyncio*", "lib-dynload/_multiprocessing*", "lib-dynload/_sqlite3*",
    ),
}  # fmt: skip

#: The roles that a connection passes. Those with privileges, and those that are asked once in a while, run as they are.
COMPILED = ("listener", "umaster", "vhost")

#: Where a tenant's container has its tmpfs. An engine gives those the mode of what lies below, and which uid a tenant
#: will have is its operator's choice.
FOR_ANY_UID = ("tmp", "run/health")

#: Loaded by name at run time, so that no ldd shows it: threads that end early unwind their stack with it.
RUNTIME_LIBRARIES = ("libgcc_s.so.1",)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--role", required=True)
    parser.add_argument(
        "--uid", type=int, required=True, help="the role's uid in containers, for its line of passwd"
    )
    parser.add_argument("--source", type=Path, default=Path.cwd(), help="the repository")
    parser.add_argument("--out", type=Path, required=True, help="where to build the root; made new")
    parser.add_argument("--whole-stdlib", action="store_true", help="tenants' code may import anything")
    arguments = parser.parse_args(argv)

    out: Path = arguments.out
    out.mkdir(parents=True)
    copy_interpreter(out)
    lean = () if arguments.whole_stdlib else set(NOT_IN_ROLES) - set(KEPT_FOR.get(arguments.role, ()))
    copy_stdlib(out, leave_out=(*NOT_IN_ANY, *lean))
    install_locked(arguments.source, arguments.role, out / SITE)
    install_own(arguments.source, arguments.role, out / SITE)
    if arguments.role in COMPILED:
        compile_hot_path(arguments.source, out / SITE)
    if arguments.role == "master":
        write_command(out)
    if arguments.whole_stdlib:
        shutil.copytree("/usr/share/zoneinfo", out / "usr/share/zoneinfo", symlinks=True)
    copy_shared_objects(out)
    write_accounts(out, arguments.role, arguments.uid)
    make_mount_points(out)
    compile_all(out)
    import_everything(out)
    settle(out, for_any_uid=FOR_ANY_UID if arguments.whole_stdlib else ())


def copy_interpreter(out: Path) -> None:
    """Copy the interpreter to the place that the entry points name, with Debian's merged /usr around it."""
    binary = Path("/usr/bin/python3").resolve()
    (out / "usr/bin").mkdir(parents=True)
    shutil.copy2(binary, out / "usr/bin" / binary.name)
    (out / "usr/bin/python3").symlink_to(binary.name)
    for name in ("lib", "lib64"):
        (out / "usr" / name).mkdir()
        (out / name).symlink_to(f"usr/{name}")


def copy_stdlib(out: Path, *, leave_out: Iterable[str]) -> None:
    leave = tuple(leave_out)

    def ignore(folder: str, names: list[str]) -> set[str]:
        here = Path(folder).relative_to(STDLIB)
        paths = {name: (here / name).as_posix() for name in names}
        return {
            n
            for n, path in paths.items()
            if n == "__pycache__" or any(fnmatch.fnmatchcase(path, glob) for glob in leave)
        }

    shutil.copytree(STDLIB, out / STDLIB.relative_to("/"), ignore=ignore, symlinks=False)


def install_locked(source: Path, role: str, site: Path) -> None:
    """Install the role's locked packages by hash, and nothing that the lock does not name."""
    site.mkdir(parents=True, exist_ok=True)
    lock = source / "services" / role / "requirements.lock"
    if not re.search(r"^[^#\s]", lock.read_text(), re.MULTILINE):
        return
    install_by_hash(lock, source / ".cache/wheels" / role, site)


def install_by_hash(lock: Path, wheels: Path, site: Path) -> None:
    here = sorted(wheels.glob("*.whl")) if wheels.is_dir() else []
    offline = ["--no-index", f"--find-links={wheels}"] if here else []
    pip("--require-hashes", "--only-binary=:all:", "--no-deps", *offline, f"--target={site}", "-r", str(lock))


def install_own(source: Path, role: str, site: Path) -> None:
    """Build and install the library and the role. setuptools comes from Debian: that needs no index."""
    work = Path("/tmp/rootfs-build")
    for project in (source, source / "services" / role):
        # Into a copy: setuptools writes beside the sources, and those are mounted read-only.
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE", "src"):
            if (project / name).is_dir():
                shutil.copytree(
                    project / name, work / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
                )
            elif (project / name).exists():
                shutil.copy(project / name, work / name)
        pip("--no-build-isolation", "--no-deps", "--no-index", f"--target={site}", str(work))
    shutil.rmtree(work)
    # Console scripts would need a path of their own, and every role is started by its module.
    shutil.rmtree(site / "bin", ignore_errors=True)
    for note in site.glob("*.dist-info/direct_url.json"):
        note.unlink()


def compile_hot_path(source: Path, site: Path) -> None:
    tools = Path("/tmp/rootfs-native")
    install_by_hash(source / "requirements/native.lock", source / ".cache/wheels/native", tools)
    native = source / "scripts/native.py"
    subprocess.run(
        [sys.executable, str(native), str(site)], check=True, env={**os.environ, "PYTHONPATH": str(tools)}
    )
    shutil.rmtree(tools)


def write_command(out: Path) -> None:
    """Put /usr/bin/pyttpd where master is, so that it can be asked: `docker compose exec master pyttpd reload`."""
    program = out / "usr/bin/pyttpd"
    program.write_text(
        "#!/usr/bin/python3 -I\nimport sys\n\nfrom pyttpd import admin\n\nsys.exit(admin.main(sys.argv[1:]))\n"
    )
    program.chmod(0o755)


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
               "--root-user-action=ignore", "--break-system-packages", "--no-compile", "--no-cache-dir",
               *arguments]  # fmt: skip
    subprocess.run(command, check=True)


def copy_shared_objects(out: Path) -> None:
    """Copy what the interpreter and the extension modules need, to where the loader looks without a cache."""
    programs = [out / "usr/bin/python3", *sorted(out.rglob("*.so"))]
    listing = subprocess.run(["ldd", *map(str, programs)], check=True, capture_output=True, text=True).stdout
    if missing := re.findall(r"^\s*(\S+) => not found", listing, re.MULTILINE):
        raise SystemExit(f"rootfs: shared objects that are nowhere: {sorted(set(missing))}")
    paths = {Path(path) for path in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", listing, re.MULTILINE)}
    libraries = next(path.parent for path in paths if path.name.startswith("libc.so"))
    for path in sorted(paths | {libraries / name for name in RUNTIME_LIBRARIES}):
        if path.is_relative_to(out):
            continue
        # Extension modules of wheels bring their own; everything else keeps the path that it was found at.
        target = out / "usr" / path.relative_to("/" if not path.is_relative_to("/usr") else "/usr")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target, follow_symlinks=True)


def write_accounts(out: Path, role: str, uid: int) -> None:
    etc = out / "etc"
    etc.mkdir()
    name = "root" if uid == 0 else f"pyttpd-{role}"
    (etc / "passwd").write_text(f"{name}:x:{uid}:{uid}:pyttpd {role}:/:/nonexistent\n")
    (etc / "group").write_text(f"{name}:x:{uid}:\n")
    # localhost must mean something in a container without a resolver: getaddrinfo() asks files only.
    (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")


def make_mount_points(out: Path) -> None:
    """Make the folders that a read-only root is mounted over; /tmp is nobody's until something is."""
    for name in ("dev", "proc", "sys", "tmp", "etc/pyttpd", "run/health", "run/pyttpd", "srv"):
        (out / name).mkdir(parents=True, exist_ok=True)


def compile_all(out: Path) -> None:
    """Byte-compile, valid by decree: a read-only image cannot change under its byte code."""
    ok = compileall.compile_dir(
        out, quiet=1, stripdir=str(out), prependdir="/", workers=0, maxlevels=40,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )  # fmt: skip
    if not ok:
        raise SystemExit("rootfs: something does not compile")


#: Run inside the finished root; a role's __main__ would start the role.
IMPORT_ALL = """
import importlib, pkgutil, sys
for top in sys.argv[1:]:
    package = importlib.import_module(top)
    for module in pkgutil.walk_packages(package.__path__, top + ".") if top.startswith("pyttpd") else ():
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""


def import_everything(out: Path) -> None:
    """Import every package and every module of ours in the new root: a gap ends the build, not a role."""
    packages = sorted(path.parent.name for path in (out / SITE).glob("*/__init__.py"))
    subprocess.run(
        ["chroot", str(out), "/usr/bin/python3", "-I", "-B", "-c", IMPORT_ALL, *packages], check=True
    )


def settle(out: Path, *, for_any_uid: tuple[str, ...]) -> None:
    """Give every file to root, writable and privileged for nobody, no module a program, and one time to all."""
    for path in [*out.rglob("*"), out]:
        if not path.is_symlink():
            mode = path.stat().st_mode
            program = mode & stat.S_IXUSR and path.suffix != ".py"
            path.chmod(0o755 if stat.S_ISDIR(mode) or program else 0o644)
        if path.relative_to(out).as_posix() in for_any_uid:
            path.chmod(0o1777)
        os.chown(path, 0, 0, follow_symlinks=False)
    for path in [*out.rglob("*"), out]:
        os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)


if __name__ == "__main__":
    main()
