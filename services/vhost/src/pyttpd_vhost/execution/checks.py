"""What a program must be before it is run for a request: suEXEC's checks, in its order, each with its own text.

Theory of operation. A script is found by walking down from a directory that the configuration names, one component at
a time, each opened by itself and without following links. Every check is made on the descriptor of what was opened
(fstat(2)), never on a name. A program is run by its name all the same: the kernel gives a script's name, and nothing
else, to its interpreter. So all directories on the way are checked as well as the program: nobody but the owners that
we trust can make the name mean another file between the check and the run. That is what is left of the race: someone
who could write the program anyway.

    who runs it       uid and gid at least the floor: no system's account, never root
    each directory    a directory; its owner and its group; not writable by others, nor by its group
    the program       there; a regular file; not set-uid, not set-gid; its owner and its group; not writable by others,
                      nor by its group; may be executed

Links are no directories and no regular files here, and are refused wherever they lead. ".." is no name.

Whose files are trusted (`Identity`): of who runs the program, root's, and those of the owner of the mount's root, who
is trusted with what lies in it: a site that belongs to its webmaster.

Pure but for `walk`. A worker judges, with the rights that the program will have: it protects the tenant from who else
can write to its folders, and nobody from the tenant.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

#: The least uid and gid under which a program is run: below are the system's accounts (Debian policy 9.2.2; the same
#: floor as Debian's suEXEC has).
MIN_UID = 100
MIN_GID = 100

#: A directory on the way, or what may be the program; read rights aren't needed to look at it.
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

#: Components of one path. PATH_MAX leaves room for 2,048; each costs two system calls.
MAX_COMPONENTS = 64


class CheckFailed(Exception):
    """A program must not be run. `check` names the rule, `text` says what is wrong with what, for the log."""

    def __init__(self, check: str, text: str) -> None:
        super().__init__(text)
        self.check = check
        self.text = text


class NotThere(Exception):
    """The path leads to no program: nothing of that name, or nothing that is one."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who runs a program, and whose files are trusted with being one."""

    uid: int
    gid: int
    owners: frozenset[int]
    groups: frozenset[int]

    @classmethod
    def of(cls, uid: int, gid: int, root: os.stat_result | None = None) -> Identity:
        """Make the rules for `uid` and `gid`; `root`: the folder's whose owner is trusted as well."""
        owners, groups = {uid, 0}, {gid, 0}
        if root is not None:
            owners.add(root.st_uid)
            groups.add(root.st_gid)
        return cls(uid, gid, frozenset(owners), frozenset(groups))


#: A rule: its name, whether it is broken, and what is said then.
_Rule = tuple[str, Callable[[os.stat_result, Identity], bool], Callable[[os.stat_result, Identity], str]]

_OWNED: tuple[_Rule, ...] = (
    (
        "owner",
        lambda status, who: status.st_uid not in who.owners,
        lambda status, who: f"owned by uid {status.st_uid}, and not by {_any_of(who.owners)}",
    ),
    (
        "group",
        lambda status, who: status.st_gid not in who.groups,
        lambda status, who: f"of group {status.st_gid}, and not of {_any_of(who.groups)}",
    ),
    (
        "writable-by-others",
        lambda status, _: bool(status.st_mode & stat.S_IWOTH),
        lambda status, _: f"writable by everybody (mode {_mode(status)}): chmod o-w",
    ),
    (
        "writable-by-group",
        lambda status, _: bool(status.st_mode & stat.S_IWGRP),
        lambda status, _: f"writable by its group (mode {_mode(status)}): chmod g-w",
    ),
)
_REGULAR: _Rule = (
    "regular",
    lambda status, _: not stat.S_ISREG(status.st_mode),
    lambda status, _: f"{_what(status)}, and no regular file",
)
_SET_ID: tuple[_Rule, ...] = (
    (
        "set-uid",
        lambda status, _: bool(status.st_mode & stat.S_ISUID),
        lambda status, _: f"set-uid (mode {_mode(status)}): chmod u-s",
    ),
    (
        "set-gid",
        lambda status, _: bool(status.st_mode & stat.S_ISGID),
        lambda status, _: f"set-gid (mode {_mode(status)}): chmod g-s",
    ),
)
_EXECUTABLE: _Rule = (
    "executable",
    lambda status, who: not _may_execute(status, who),
    lambda status, who: f"not executable by uid {who.uid}, gid {who.gid} (mode {_mode(status)}): chmod +x",
)
_DIRECTORY: _Rule = (
    "directory",
    lambda status, _: not stat.S_ISDIR(status.st_mode),
    lambda status, _: f"{_what(status)}, and no directory",
)

#: In this order; the first that is broken is told.
DIRECTORY_RULES: tuple[_Rule, ...] = (_DIRECTORY, *_OWNED)
PROGRAM_RULES: tuple[_Rule, ...] = (_REGULAR, *_SET_ID, *_OWNED, _EXECUTABLE)
#: Of a file that is given to an interpreter: nobody executes it.
SOURCE_RULES: tuple[_Rule, ...] = (_REGULAR, *_SET_ID, *_OWNED)
#: Where the operator has switched the others off.
LOOSE_RULES: tuple[_Rule, ...] = (_REGULAR, *_SET_ID, _EXECUTABLE)
LOOSE_SOURCE_RULES: tuple[_Rule, ...] = (_REGULAR, *_SET_ID)


def check_identity(who: Identity) -> None:
    """Check who is to run a program. Raises CheckFailed."""
    if who.uid < MIN_UID:
        raise CheckFailed("uid", f"would run as uid {who.uid}, which is below {MIN_UID}")
    if who.gid < MIN_GID:
        raise CheckFailed("gid", f"would run as gid {who.gid}, which is below {MIN_GID}")


def check(rules: Iterable[_Rule], status: os.stat_result, who: Identity, name: str) -> None:
    """Check what was opened as `name`. Raises CheckFailed for the first rule that it breaks."""
    for rule, broken, text in rules:
        if broken(status, who):
            raise CheckFailed(rule, f"{name} is {text(status, who)}")


def _any_of(ids: frozenset[int]) -> str:
    return " or ".join(str(each) for each in sorted(ids, reverse=True))


def _mode(status: os.stat_result) -> str:
    return f"{stat.S_IMODE(status.st_mode):04o}"


def _may_execute(status: os.stat_result, who: Identity) -> bool:
    if status.st_uid == who.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == who.gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


_TYPES = {
    stat.S_IFDIR: "a directory",
    stat.S_IFREG: "a regular file",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _what(status: os.stat_result) -> str:
    return _TYPES.get(stat.S_IFMT(status.st_mode), "something else")


# --- the walk -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Found:
    """What a path leads to. Owns `fd`, which is open for looking only (O_PATH).

    `path`: relative to where the walk began. `rest`: the components behind it.
    """

    fd: int
    path: bytes
    status: os.stat_result
    rest: Sequence[bytes]

    def close(self) -> None:
        """Give the descriptor back."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def walk(base: int, components: Sequence[bytes], who: Identity | None, name: str) -> Found:
    """Walk down from the directory `base`, which the caller keeps, to the first component that is no directory.

    If all are directories, the last one is what was found. `name` is what `base` is called in texts. who: the rules for
    each directory on the way; None: none but that it is one. Raises CheckFailed, NotThere, and OSError for what is
    neither (EACCES, EMFILE, EIO).
    """
    if len(components) > MAX_COMPONENTS:
        raise NotThere
    fd = os.open(b".", _LOOK | os.O_DIRECTORY, dir_fd=base)
    try:
        status = os.fstat(fd)
        for number, component in enumerate(components):
            path = b"/".join(components[:number])
            if who is not None:
                check(DIRECTORY_RULES, status, who, _named(name, path))
            # what a request calls hidden isn't there, and what leads up is no name
            if component[:1] in (b"", b".") or b"/" in component or b"\0" in component:
                raise NotThere
            try:
                deeper = os.open(component, _LOOK, dir_fd=fd)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENAMETOOLONG, errno.ENOTDIR):
                    raise NotThere from None
                raise
            os.close(fd)
            fd = deeper
            status = os.fstat(fd)
            if not stat.S_ISDIR(status.st_mode):
                return Found(fd, b"/".join(components[: number + 1]), status, components[number + 1 :])
        if who is not None:
            check(DIRECTORY_RULES, status, who, _named(name, b"/".join(components)))
        return Found(fd, b"/".join(components), status, ())
    except BaseException:
        os.close(fd)
        raise


def _named(name: str, path: bytes) -> str:
    return f"{name}/{path.decode('utf-8', 'backslashreplace')}" if path else name
