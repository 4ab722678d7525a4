"""What a program must be before it is run: each rule alone, their order, and the walk to it on real files."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from pyttpd_vhost.execution import checks
from pyttpd_vhost.execution.checks import CheckFailed, Identity, NotThere

WHO = Identity.of(20004, 20005)


def status(mode: int, uid: int = 20004, gid: int = 20005) -> os.stat_result:
    return os.stat_result((mode, 1, 1, 1, uid, gid, 0, 0, 0, 0))


FILE, DIRECTORY = stat.S_IFREG, stat.S_IFDIR
PROGRAM = [
    (status(FILE | 0o755), None, ""),
    (status(FILE | 0o700), None, ""),
    (status(FILE | 0o755, 0, 0), None, ""),
    (status(FILE | 0o010, 0, 20005), None, ""),
    (
        status(stat.S_IFLNK | 0o777),
        "regular",
        "a symbolic link, and no regular file",
    ),
    (status(DIRECTORY | 0o755), "regular", "a directory, and no regular file"),
    (status(stat.S_IFIFO | 0o755), "regular", "a FIFO, and no regular file"),
    (status(stat.S_IFSOCK | 0o755), "regular", "a socket, and no regular file"),
    (status(stat.S_IFCHR | 0o755), "regular", "a device, and no regular file"),
    (status(FILE | 0o4755), "set-uid", "set-uid (mode 4755): chmod u-s"),
    (status(FILE | 0o2755), "set-gid", "set-gid (mode 2755): chmod g-s"),
    (status(FILE | 0o755, 1000), "owner", "owned by uid 1000, and not by 20004 or 0"),
    (status(FILE | 0o755, gid=1000), "group", "of group 1000, and not of 20005 or 0"),
    (
        status(FILE | 0o757),
        "writable-by-others",
        "writable by everybody (mode 0757): chmod o-w",
    ),
    (
        status(FILE | 0o775),
        "writable-by-group",
        "writable by its group (mode 0775): chmod g-w",
    ),
    (
        status(FILE | 0o644),
        "executable",
        "not executable by uid 20004, gid 20005 (mode 0644): chmod +x",
    ),
    # the owner's right counts for the owner, the group's for the group, as the kernel has it
    (status(FILE | 0o055), "executable", "not executable by uid 20004"),
    (status(FILE | 0o705, 0), "executable", "not executable by uid 20004"),
    (status(FILE | 0o770 & ~0o020, 0, 0), "executable", "not executable by uid 20004"),
    # several are wrong: the first one in order is told
    (status(FILE | 0o6777, 1, 1), "set-uid", ""),
    (status(FILE | 0o777, 1, 1), "owner", ""),
    (status(FILE | 0o777, gid=1), "group", ""),
    (status(FILE | 0o666), "writable-by-others", ""),
    (status(FILE | 0o664), "writable-by-group", ""),
]
FOLDER = [
    (status(DIRECTORY | 0o755), None, ""),
    (status(DIRECTORY | 0o2755, 0, 0), None, ""),
    (status(FILE | 0o755), "directory", "a regular file, and no directory"),
    (status(DIRECTORY | 0o755, 33), "owner", "owned by uid 33"),
    (status(DIRECTORY | 0o755, gid=33), "group", "of group 33"),
    (status(DIRECTORY | 0o1777, 0, 0), "writable-by-others", "writable by everybody (mode 1777)"),
    (status(DIRECTORY | 0o775), "writable-by-group", "writable by its group (mode 0775)"),
]


@pytest.mark.parametrize(
    ("rules", "found", "rule", "text"),
    [
        *[(checks.PROGRAM_RULES, *case) for case in PROGRAM],
        *[(checks.DIRECTORY_RULES, *case) for case in FOLDER],
        # who runs an interpreter needn't be able to execute what it reads
        (checks.SOURCE_RULES, status(FILE | 0o644), None, ""),
        (checks.SOURCE_RULES, status(FILE | 0o646), "writable-by-others", ""),
        # switched off, the file must still be a program, and give nobody rights
        (checks.LOOSE_RULES, status(FILE | 0o777, 1, 1), None, ""),
        (checks.LOOSE_RULES, status(FILE | 0o4777, 1, 1), "set-uid", ""),
        (checks.LOOSE_RULES, status(FILE | 0o666, 1, 1), "executable", ""),
        (checks.LOOSE_SOURCE_RULES, status(FILE | 0o666, 1, 1), None, ""),
        (checks.LOOSE_SOURCE_RULES, status(stat.S_IFLNK | 0o777, 1, 1), "regular", ""),
    ],
)
def test_rules(rules: Sequence[checks._Rule], found: os.stat_result, rule: str | None, text: str) -> None:
    if rule is None:
        checks.check(rules, found, WHO, "name")
        return
    with pytest.raises(CheckFailed) as failure:
        checks.check(rules, found, WHO, "name")
    assert failure.value.check == rule
    assert failure.value.text.startswith(f"name is {text}")


@pytest.mark.parametrize(
    ("uid", "gid", "rule", "text"),
    [
        (100, 100, None, ""),
        (0, 1000, "uid", "would run as uid 0, which is below 100"),
        (99, 1000, "uid", "would run as uid 99, which is below 100"),
        (1000, 0, "gid", "would run as gid 0, which is below 100"),
        (1000, 4, "gid", "would run as gid 4, which is below 100"),
    ],
)
def test_no_program_is_run_by_a_systems_account(uid: int, gid: int, rule: str | None, text: str) -> None:
    if rule is None:
        checks.check_identity(Identity.of(uid, gid))
        return
    with pytest.raises(CheckFailed, match=text) as failure:
        checks.check_identity(Identity.of(uid, gid))
    assert failure.value.check == rule


def test_the_owner_of_the_root_is_trusted() -> None:
    root = status(DIRECTORY | 0o755, 1000, 1000)
    script = status(FILE | 0o755, 1000, 1000)
    checks.check(checks.PROGRAM_RULES, script, Identity.of(20004, 20004, root), "x")
    with pytest.raises(CheckFailed):
        checks.check(checks.PROGRAM_RULES, script, Identity.of(20004, 20004), "x")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    for folder in ("cgi", "cgi/deep"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder).chmod(0o755)
    for name in ("cgi/a", "cgi/deep/b", "cgi/.hidden"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "cgi/link").symlink_to("a")
    (tmp_path / "cgi/folders").symlink_to("deep")
    os.mkfifo(tmp_path / "cgi/fifo", 0o600)
    return tmp_path


ME = Identity.of(os.getuid(), os.getgid())


def walk(place: Path, path: str, who: Identity | None = ME) -> tuple[str, list[str]]:
    base = os.open(place, os.O_PATH | os.O_DIRECTORY)
    try:
        found = checks.walk(base, os.fsencode(path).split(b"/"), who, "root")
    finally:
        os.close(base)
    assert (
        os.fstat(found.fd).st_ino == found.status.st_ino == (place / os.fsdecode(found.path)).lstat().st_ino
    )
    found.close()
    found.close()
    return os.fsdecode(found.path), [os.fsdecode(each) for each in found.rest]


@pytest.mark.parametrize(
    ("path", "found", "rest"),
    [
        ("cgi/a", "cgi/a", []),
        ("cgi/a/more/of/it", "cgi/a", ["more", "of", "it"]),
        ("cgi/a//..//.x", "cgi/a", ["", "..", "", ".x"]),
        ("cgi/deep/b/", "cgi/deep/b", [""]),
        ("cgi/deep", "cgi/deep", []),
        # found, and refused by the rules: never followed, never opened
        ("cgi/link/x", "cgi/link", ["x"]),
        ("cgi/folders/b", "cgi/folders", ["b"]),
        ("cgi/fifo", "cgi/fifo", []),
    ],
)
def test_walk(place: Path, path: str, found: str, rest: list[str]) -> None:
    assert walk(place, path) == (found, rest)


@pytest.mark.parametrize(
    "path",
    [
        *("cgi/none", "cgi/../cgi/a", "../x", "cgi/./a", "cgi//a", "/etc/passwd", "cgi/.hidden", ".."),
        *("cgi/deep/", "cgi/a\0b", "cgi/" + "n" * 300, "/".join(["cgi"] * (checks.MAX_COMPONENTS + 1))),
    ],
)
def test_walk_finds_nothing(place: Path, path: str) -> None:
    with pytest.raises(NotThere):
        walk(place, path)


@pytest.mark.parametrize("loose", ["", "cgi", "cgi/deep"])
def test_each_directory_on_the_way_is_checked(place: Path, loose: str) -> None:
    (place / loose).chmod(0o777)
    with pytest.raises(CheckFailed, match=f"^root/?{loose} is writable by everybody") as failure:
        walk(place, "cgi/deep/b")
    assert failure.value.check == "writable-by-others"
    assert walk(place, "cgi/deep/b", None) == ("cgi/deep/b", [])


def test_a_directory_that_becomes_a_link_leads_nowhere(place: Path, tmp_path: Path) -> None:
    """Between two looks the name changes its meaning: what was opened is what is checked."""
    base = os.open(place, os.O_PATH | os.O_DIRECTORY)
    try:
        found = checks.walk(base, [b"cgi", b"a"], ME, "root")
        (place / "cgi/a").rename(place / "cgi/old")
        (place / "cgi/a").symlink_to("/bin/sh")
        checks.check(checks.PROGRAM_RULES, os.fstat(found.fd), ME, "a")
        found.close()
        found = checks.walk(base, [b"cgi", b"a"], ME, "root")
        with pytest.raises(CheckFailed):
            checks.check(checks.PROGRAM_RULES, found.status, ME, "a")
        found.close()
    finally:
        os.close(base)
