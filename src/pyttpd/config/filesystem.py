"""Does what the configuration names exist, and may the tenant use it? For `pyttpd check` on the machine that runs the
plain form; in compose each tenant's files are in its own container, where nobody else can look.
"""

from __future__ import annotations

import os
import shutil
import stat
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING

from pyttpd.config import limits
from pyttpd.config.asked import AskedOptions, ScriptOptions
from pyttpd.config.errors import ConfigError, printable
from pyttpd.config.kind_keys import SHORTHAND
from pyttpd.config.kinds import AsgiOptions, CgiOptions, HandoffOptions, StaticOptions, WsgiOptions
from pyttpd.confine.policy import PROGRAMS, python_paths
from pyttpd.virtualenv import VirtualenvError, finds_elsewhere, linked, look

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyttpd.config.kinds import Mount
    from pyttpd.config.loader import Locate
    from pyttpd.config.model import Config, Vhost

#: Where the supervisor of a tenant looks for programs (pyttpd_vhost.execution.plan).
_PATH = os.environ.get("PATH") or "/usr/local/bin:/usr/bin:/bin"
#: Bits of a mode's last octal digit.
_READ, _WRITE, _SEARCH = 4, 2, 1
#: Of a file the same bit is another right.
_EXECUTE = _SEARCH


def check_filesystem(config: Config, locate: Locate | None = None) -> list[ConfigError]:
    """Return what is wrong with the paths of `config`, vhost by vhost; [] if nothing is.

    As root, the tenants' real uids count; as an ordinary user, who runs the whole tree, that user's own rights do.
    """
    found: list[ConfigError] = []

    def add(where: tuple[str, ...], key: str, message: str) -> None:
        named = ".".join([part for part in where if not part.isdigit()])
        table = f"[[{named}]]" if where[-1].isdigit() else f"[{named}]"
        file, line = locate((*where, key)) if locate else (config.file, None)
        found.append(ConfigError(file, line, f"{table} {key}", message))

    for vhost in config.vhosts:
        own = "vhost", vhost.name
        packages: list[str] = []
        wrong = _problems(vhost, packages)
        for key, message in wrong:
            add(own, key, message)
        searched = not any(key in ("root", "python_path", "virtualenv") for key, _ in wrong)
        for number, mount in enumerate(vhost.mounts):
            for key, message in _mount_problems(vhost, mount, packages if searched else None):
                if not vhost.shorthand:
                    place: tuple[str, ...] = (*own, "mount", str(number))
                else:
                    place = own if key in [each.name for each in SHORTHAND] else (*own, mount.kind)
                add(place, key, message)
    return found


def _mount_problems(vhost: Vhost, mount: Mount, packages: list[str] | None) -> list[tuple[str, str]]:
    """Look at what a mount's options name. `packages`: where modules may be found as well; None: nobody knows."""
    match mount.options:
        case StaticOptions(root=root) if root != vhost.root:
            message = _folder_problem(root, _READ | _SEARCH, vhost.uid, vhost.gid)
            return [("root", message)] if message else []
        case WsgiOptions(application=application) | AsgiOptions(application=application) if (
            packages is not None
        ):
            message = _module_problem(vhost, application, packages)
            return [("application", message)] if message else []
        case CgiOptions() as options:
            return _cgi_problems(vhost, options)
        case AskedOptions() | HandoffOptions() as options:
            return _asked_problems(vhost, options)
        case _:
            return []


def _cgi_problems(vhost: Vhost, options: CgiOptions) -> list[tuple[str, str]]:
    """Look at the folder of a mount's programs, and at those that it names."""
    found = []
    if options.root != vhost.root:
        found.append(("root", _folder_problem(options.root, _READ | _SEARCH, vhost.uid, vhost.gid)))
    if options.script is not None:
        suffix = os.path.splitext(options.script)[1]
        rights = _READ if suffix in options.handlers else _READ | _EXECUTE
        found.append(("script", _program_problem(vhost, options.script, rights)))
    found += [
        ("handlers", _program_problem(vhost, program, _EXECUTE)) for program in options.handlers.values()
    ]
    return [(key, message) for key, message in found if message]


def _program_problem(vhost: Vhost, path: str, rights: int) -> str | None:
    """Say why the tenant couldn't run (or, without that right, read) the file `path`."""
    shown = printable(path, 200)
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return f"{shown}: {os.strerror(error.errno or 0)}"
    if not stat.S_ISREG(mode):
        return f"{shown}: must be a program, and it is no regular file"
    if os.geteuid() == 0:
        real = os.path.realpath(path)
        problem = _permission_problem(real, rights, vhost.uid, vhost.gid)
        if problem and problem.startswith(f"{printable(real, 200)}:"):
            problem = problem.replace("enter it", "run it")
        if problem:
            return problem
    elif not os.access(path, rights):
        return f"{shown}: you ({os.geteuid()}) may not run it"
    if not _is_below(os.path.realpath(path), _run_from(vhost)):
        return f"{shown}: the tenant may run nothing there: put it below its root"
    return None


def _run_from(vhost: Vhost) -> list[str]:
    """Return the folders from which the tenant's locks let it run programs (pyttpd_vhost.tenant.confine_tenant)."""
    own = [vhost.root, *vhost.python_path, *((vhost.virtualenv,) if vhost.virtualenv else ())]
    own += [
        mount.options.root
        for mount in vhost.mounts
        if isinstance(mount.options, CgiOptions | ScriptOptions) and mount.options.root
    ]
    return [*own, *python_paths(), *PROGRAMS]


def _is_below(path: str, folders: Iterable[str]) -> bool:
    real = [os.path.realpath(folder) for folder in folders]
    return any(path == each or path.startswith(f"{each}/") for each in real)


def _asked_problems(vhost: Vhost, options: AskedOptions | HandoffOptions) -> list[tuple[str, str]]:
    """Look for the application's folder, its socket's, and its program. (The socket itself may come later.)"""
    found = []
    root = options.root if isinstance(options, ScriptOptions) else vhost.root
    if root != vhost.root and (message := _folder_problem(root, _READ | _SEARCH, vhost.uid, vhost.gid)):
        found.append(("root", message))
    if options.socket is not None and (
        message := _folder_problem(os.path.dirname(options.socket), _SEARCH, vhost.uid, vhost.gid)
    ):
        found.append(("socket", message))
    if options.command:
        wrong = [_program_problem(vhost, program, _EXECUTE) for program in _found(vhost, options.command[0])]
        if not wrong:
            found.append(("command", f"{printable(options.command[0], 200)}: there is no such program"))
        elif all(wrong) and wrong[0]:
            found.append(("command", wrong[0]))
    return found


def _found(vhost: Vhost, program: str) -> list[str]:
    """Return where `program` may be. The tenant takes the first that it may run, and one that is root's alone (in a
    private home that root's PATH names) isn't.
    """
    own = [f"{vhost.virtualenv}/bin"] if vhost.virtualenv else []
    places = [""] if "/" in program else [*own, *_PATH.split(":")]
    return [found for place in places if (found := shutil.which(os.path.join(place, program), path=""))]


def _problems(vhost: Vhost, packages: list[str]) -> list[tuple[str, str]]:
    """Look at what the vhost's own table names; gather in `packages` where modules may be found."""
    wanted = [("root", vhost.root, _READ | _SEARCH)]
    wanted += [("python_path", path, _READ | _SEARCH) for path in vhost.python_path]
    wanted += [("writable", path, _READ | _WRITE | _SEARCH) for path in vhost.writable]
    found = []
    for key, path, rights in wanted:
        message = _folder_problem(path, rights, vhost.uid, vhost.gid)
        if message:
            found.append((key, message))
    for key, file in (
        ("access_log_file", vhost.access_log_file),
        ("error_log_file", vhost.error_log_file),
        ("slow_log_file", vhost.slow_log_file),
    ):
        message = _log_problem(file, vhost.uid, vhost.gid) if file is not None else None
        if message:
            found.append((key, message))
    if not any(key == "root" for key, _ in found):
        for page in sorted(set(vhost.error_pages.values())):
            message = _page_problem(vhost, page)
            if message:
                found.append(("error_pages", message))
    if vhost.virtualenv is not None:
        found += [
            ("virtualenv", message) for message in _virtualenv_problems(vhost, vhost.virtualenv, packages)
        ]
    return found


def _virtualenv_problems(vhost: Vhost, path: str, packages: list[str]) -> list[str]:
    """Say what is wrong with a tenant's virtual environment; gather in `packages` where modules may be found."""
    try:
        environment = look(path)
    except VirtualenvError as error:
        return [f"{printable(path, 200)}: {printable(str(error), 1000)}"]
    found = []
    for folder in environment.packages:
        packages.append(folder)
        message = _folder_problem(folder, _READ | _SEARCH, vhost.uid, vhost.gid)
        if message:
            found.append(message)
    open_to_tenant = (vhost.root, path, *vhost.python_path, *PROGRAMS)
    for file, folder in linked(environment):
        packages.append(folder)
        if not _is_below(folder, open_to_tenant):
            found.append(
                f"{printable(file, 200)} names {printable(folder, 200)}, which the tenant can't read: add that to "
                "python_path"
            )
    return found


def _folder_problem(path: str, rights: int, uid: int, gid: int) -> str | None:
    shown = printable(path, 200)
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return f"{shown}: {os.strerror(error.errno or 0)}"
    if not stat.S_ISDIR(mode):
        return f"{shown}: must be a folder"
    if os.geteuid() != 0:
        return (
            None if os.access(path, rights) else f"{shown}: you ({os.geteuid()}) may not {_words(rights)} it"
        )
    return _permission_problem(os.path.realpath(path), rights, uid, gid)


def _log_problem(file: str, uid: int, gid: int) -> str | None:
    """Say why the tenant's supervisor, who has its uid, couldn't write the log `file`."""
    folder = os.path.dirname(file)
    shown = printable(folder, 200)
    real = os.path.realpath(file)
    if real != file:
        return f"{printable(file, 200)}: must not lead through a symbolic link; write {printable(real, 200)}"
    if not os.path.isdir(folder):
        make = f" (make it: install -d -o {uid} -g {gid} -m 0750 {shown})" if os.geteuid() == 0 else ""
        return f"{shown}: must be a folder{make}"
    if not os.path.lexists(file):
        problem = _folder_problem(folder, _WRITE | _SEARCH, uid, gid)
        hint = f" (make the file: install -o {uid} -g {gid} -m 0640 /dev/null {printable(file, 200)})"
        return problem + hint if problem and os.geteuid() == 0 else problem
    if not stat.S_ISREG(os.stat(file).st_mode):
        return f"{printable(file, 200)}: must be a regular file"
    if os.geteuid() == 0:
        return _permission_problem(file, _WRITE, uid, gid)
    return (
        None if os.access(file, os.W_OK) else f"{printable(file, 200)}: you ({os.geteuid()}) may not write it"
    )


def _page_problem(vhost: Vhost, page: str) -> str | None:
    """Say why an error page wouldn't be sent."""
    path = os.path.join(vhost.root, page)
    shown = printable(path, 200)
    try:
        status = os.stat(path)
    except OSError as error:
        return f"{shown}: {os.strerror(error.errno or 0)}"
    real = os.path.realpath(path)
    if not real.startswith(f"{os.path.realpath(vhost.root)}/"):
        return f"{shown}: must not lead out of the root"
    if not stat.S_ISREG(status.st_mode):
        return f"{shown}: must be a regular file"
    if status.st_size > limits.MAX_ERROR_PAGE_BYTES:
        return f"{shown}: must be at most {limits.MAX_ERROR_PAGE_BYTES} bytes"
    if os.geteuid() == 0:
        return _permission_problem(real, _READ, vhost.uid, vhost.gid)
    return None if os.access(path, os.R_OK) else f"{shown}: you ({os.geteuid()}) may not read it"


def _permission_problem(path: str, rights: int, uid: int, gid: int) -> str | None:
    """Say which folder on the way stops `uid`. Modes only: access control lists are left to the tenant's own start."""
    parents = []
    folder = path
    while folder != "/":
        folder = os.path.dirname(folder)
        parents.append(folder)
    for each, needed in [*[(parent, _SEARCH) for parent in reversed(parents)], (path, rights)]:
        status = os.stat(each)
        shift = 6 if status.st_uid == uid else 3 if status.st_gid == gid else 0
        if (status.st_mode >> shift) & needed != needed:
            return f"{printable(each, 200)}: uid {uid} (group {gid}) may not {_words(needed)} it"
    return None


def _words(rights: int) -> str:
    words = [word for bit, word in ((_READ, "read"), (_WRITE, "write"), (_SEARCH, "enter")) if rights & bit]
    return " and ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])} and {words[-1]}"


def _module_problem(vhost: Vhost, application: str, packages: list[str]) -> str | None:
    """Look for the application's module without importing anything."""
    module = application.partition(":")[0]
    if any(finds_elsewhere(folder) for folder in packages):
        return None
    missing = _missing(module, [vhost.root, *vhost.python_path, *packages])
    if missing is None or (missing == module.partition(".")[0] and _missing(module, None) is None):
        return None  # there, or installed beside pyttpd
    places = f"python_path{' and virtualenv' if vhost.virtualenv else ''}"
    return f'there is no module "{printable(missing)}" in {printable(vhost.root, 200)}, {places}'


def _missing(module: str, places: list[str] | None) -> str | None:
    """Return the first part of a dotted name that isn't in `places` (None: our own search path), None if all are."""
    name = ""
    for part in module.split("."):
        name = f"{name}.{part}".lstrip(".")
        spec = PathFinder.find_spec(name, places)
        if spec is None:
            return name
        places = list(spec.submodule_search_locations or [])
    return None
