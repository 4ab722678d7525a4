"""A tenant's virtual environment: what it is, and how its packages get into a process whose interpreter stays ours.

The rules:
- Looking (`look`) reads, it never runs anything. `pyttpd check` does it as the operator, a tenant's process after it
  has confined itself.
- Activating (`activate`) runs lines of .pth files, as Python does at its start: so it is the tenant's code, and only a
  confined process may do it.
- Order on the search path: what the tenant put in front, the standard library, the environment's packages, our own.
  What we have imported ourselves and the environment has as well is forgotten first: the tenant gets its own.
- A .pth file can name a folder anywhere, but it opens none: only `root`, `virtualenv` and `python_path` are in the
  tenant's Landlock rules, and the operator writes these.

Sources: PEP 405, the standard library's site and venv; mod_wsgi's python-home for the idea.
"""

from __future__ import annotations

import errno
import os
import site
import stat
import sys
import sysconfig
from dataclasses import dataclass
from importlib.machinery import PathFinder

#: A pyvenv.cfg has five lines, a .pth file seldom more than a hundred.
_MAX_BYTES = 1 << 16
#: .pth files, and folders named by them, that are looked at: each editable install is one.
_MAX_PTH, _MAX_LINKED = 256, 1024


class VirtualenvError(Exception):
    """It can't be used; the text says why, and what would be right."""


@dataclass(frozen=True, slots=True)
class Virtualenv:
    """A virtual environment for the running Python. `packages` are its site-packages folders, each once; `system`: it
    was made to see the system's packages, too.
    """

    path: str
    packages: tuple[str, ...]
    system: bool


def version() -> str:
    """Return the running Python's version as virtual environments' folders have it: "3.11"."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def look(path: str) -> Virtualenv:
    """Return what `path` is. Raises VirtualenvError if it is no virtual environment that this Python can use."""
    make = f"python{version()} -m venv {path}"
    config = _config(path, make)
    if config.get("implementation", "CPython") != "CPython":
        raise VirtualenvError(
            f"is for {config['implementation']}; pyttpd runs on CPython: make it anew ({make})"
        )
    # venv writes "version = 3.11.2", virtualenv and uv "version_info = 3.11.2.final.0"
    made_for = ".".join((config.get("version") or config.get("version_info") or version()).split(".")[:2])
    if made_for != version():
        raise VirtualenvError(
            f"is for Python {made_for}; pyttpd runs on {version()}: make it anew ({make}), and install its packages "
            "again"
        )
    places = {"base": path, "platbase": path}
    found = [sysconfig.get_path(name, "venv", places) for name in ("purelib", "platlib")]
    packages: dict[tuple[int, int], str] = {}
    for folder in found:
        try:
            status = os.stat(folder)
        except OSError:
            continue
        packages.setdefault((status.st_dev, status.st_ino), folder)
    if not packages:
        raise VirtualenvError(f"has no {os.path.relpath(found[0], path)}: make it anew ({make})")
    system = config.get("include-system-site-packages", "").lower() == "true"
    return Virtualenv(path, tuple(packages.values()), system)


def _config(path: str, make: str) -> dict[str, str]:
    try:
        text = _text(os.path.join(path, "pyvenv.cfg"))
    except (FileNotFoundError, NotADirectoryError):
        if not os.path.isdir(path):
            raise VirtualenvError(f"there is no such folder: make it ({make})") from None
        raise VirtualenvError(f"is no virtual environment, it has no pyvenv.cfg: make one ({make})") from None
    except OSError as error:
        raise VirtualenvError(f"pyvenv.cfg in it can't be read: {error.strerror}") from None
    pairs = (line.partition("=") for line in text.splitlines())
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def _text(path: str) -> str:
    """Return the beginning of the tenant's file at `path`; whoever looks may be root. Raises OSError.

    Anything may lie there: a FIFO would wait for a writer, and a device must not even be opened.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(fd, encoding="utf-8", errors="replace") as file:
        return file.read(_MAX_BYTES) if stat.S_ISREG(os.fstat(fd).st_mode) else ""


def linked(environment: Virtualenv) -> list[tuple[str, str]]:
    """Return (.pth file, folder that it names), in order, for the folders that exist. Runs none of their lines."""
    found: list[tuple[str, str]] = []
    looked = 0
    for packages in environment.packages:
        try:
            names = sorted(name for name in os.listdir(packages) if name.endswith(".pth"))
        except OSError:
            continue
        for name in names[:_MAX_PTH]:
            file = os.path.join(packages, name)
            try:
                text = _text(file)
            except OSError:
                continue
            for line in text.splitlines():
                line = line.strip()
                if line and "\0" not in line and not line.startswith(("#", "import ", "import\t")):
                    looked += 1
                    if looked > _MAX_LINKED:
                        return found
                    folder = os.path.realpath(os.path.join(packages, line))
                    if os.path.isdir(folder):
                        found.append((file, folder))
    return found


def finds_elsewhere(folder: str) -> bool:
    """Whether modules may be found by code that site-packages `folder` runs at the start: some editable installs."""
    try:
        return any(name.startswith("__editable__") and name.endswith(".py") for name in os.listdir(folder))
    except OSError:
        return False


def activate(environment: Virtualenv) -> None:
    """Make the environment's packages importable in this process, and let programs it starts find them as well."""
    before = list(sys.path)
    for folder in environment.packages:
        site.addsitedir(folder)
    if environment.system:
        for folder in site.getsitepackages([sys.base_prefix]):
            site.addsitedir(folder)
    added = [folder for folder in sys.path if folder not in before]
    # our own packages come last; they can't go, because we may import more of ourselves later
    standard = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    standard |= {os.path.join(folder, "lib-dynload") for folder in standard}
    after = 1 + max((at for at, folder in enumerate(before) if folder in standard), default=-1)
    sys.path[:] = [*before[:after], *added, *before[after:]]
    _forget(added)
    sys.prefix = sys.exec_prefix = environment.path
    programs = os.path.join(environment.path, "bin")
    os.environ["VIRTUAL_ENV"] = environment.path
    os.environ["PATH"] = os.pathsep.join(filter(None, (programs, os.environ.get("PATH"))))
    if os.access(python := os.path.join(programs, "python"), os.X_OK):
        sys.executable = python


def _forget(folders: list[str]) -> None:
    """Forget packages that we have imported and that lie in `folders`, too: the next import finds those.

    Who has ours already keeps it. pyttpd itself is nobody else's.
    """
    names = {name.partition(".")[0] for name in sys.modules}
    for name in sorted(names - sys.stdlib_module_names):
        if name.startswith(("pyttpd", "__")) or PathFinder.find_spec(name, folders) is None:
            continue
        for module in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
            del sys.modules[module]


def unreadable() -> list[str]:
    """Return the folders on the search path that exist and may not be read: named by a .pth file, perhaps."""
    found = []
    for folder in sys.path:
        try:
            os.scandir(folder).close()
        except PermissionError:
            found.append(folder)
        except OSError:
            pass  # absent, or an archive
    return found
