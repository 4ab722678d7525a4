"""Which program a request means: paths, words, and what is never shown or followed."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest

from pyttpd_vhost.execution.checks import CheckFailed, Identity, NotThere
from pyttpd_vhost.http.paths import BadPathError
from pyttpd_vhost.kinds.cgi.scripts import Script, Scripts, ToFolder, words

#: Who "runs" them: nobody does here. As root the tests' own uid would be below the floor.
UID = os.getuid() or 1000
WHO = Identity.of(UID, UID, os.stat_result((0, 0, 0, 0, os.getuid(), os.getgid(), 0, 0, 0, 0)))


@dataclass
class Options:
    root: str
    script: str | None = None
    index: tuple[str, ...] = ()
    handlers: dict[str, str] = field(default_factory=dict)
    suexec: bool = True


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "cgi"
    folder.mkdir()
    (folder / "shop").mkdir()
    (folder / "empty").mkdir()
    for name in ("env", "shop/cart.pl", "shop/index.cgi", "nph-raw", ".secret", "a b"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    (folder / "data.txt").write_text("source")
    (folder / "data.txt").chmod(0o644)
    (folder / "page.php").write_text("<?php ?>")
    (folder / "page.php").chmod(0o644)
    (folder / "link").symlink_to("env")
    (folder / "out").symlink_to("/bin")
    for each in (tmp_path, folder, folder / "shop", folder / "empty"):
        each.chmod(0o755)
    return folder


def find(root: Path, path: str, query: str = "", **options: object) -> Script:
    made = Options(str(root), **options)  # type: ignore[arg-type]
    return Scripts(made, WHO).find(unquote_to_bytes(path), query.encode())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "name", "info"),
    [
        ("/env", "/env", ""),
        ("/env/", "/env", "/"),
        ("/env/a//b/", "/env", "/a//b/"),
        ("/env/%41%2fb", "/env", "/A/b"),
        ("/env/%ff", "/env", "/\udcff"),
        ("/shop/cart.pl/items/3", "/shop/cart.pl", "/items/3"),
        ("/shop%2Fcart.pl/x", "/shop/cart.pl", "/x"),
        ("/a%20b", "/a b", ""),
        # decoded once: a name like any other
        ("/env/%252e%252e", "/env", "/%2e%2e"),
        ("/env/.git/config", "/env", "/.git/config"),
    ],
)
def test_found(root: Path, path: str, name: str, info: str) -> None:
    script = find(root, path)
    assert (os.fsdecode(script.name), os.fsdecode(script.info)) == (name, info)
    assert os.fsdecode(script.file) == f"{root}{name}"
    assert script.argv == (script.file,)
    assert os.fsdecode(script.directory) == os.path.dirname(f"{root}{name}")


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/none",
            "/",
            "/shop",
            "/shop/",
            "/empty/",
            "/.secret",
            "/link",
            "/link/x",
            "/out/sh",
            "//env",
            "/./env",
        ),
        *("/shop/none/x", "/shop//cart.pl", "/a+b", "/ENV", "*"),
    ],
)
def test_not_there(root: Path, path: str) -> None:
    with pytest.raises(NotThere):
        find(root, path)


@pytest.mark.parametrize(
    "path", ["/../env", "/env/..", "/env/../../etc", "/%2e%2e/x", "/env/%2e./x", "/a%00b", "/env/%00"]
)
def test_no_path(root: Path, path: str) -> None:
    with pytest.raises(BadPathError):
        find(root, path)


@pytest.mark.parametrize(
    ("path", "check"), [("/data.txt", "executable"), ("/page.php", "executable"), ("/nph-raw", "nph")]
)
def test_never_shown(root: Path, path: str, check: str) -> None:
    with pytest.raises(CheckFailed) as failure:
        find(root, path)
    assert failure.value.check == check
    assert failure.value.text.startswith(str(root))


def test_index(root: Path) -> None:
    script = find(root, "/shop/", index=("main.cgi", "index.cgi"))
    assert (script.name, script.info) == (b"/shop/index.cgi", b"")
    with pytest.raises(ToFolder) as moved:
        find(root, "/shop", index=("index.cgi",))
    assert moved.value.path == b"shop"
    with pytest.raises(ToFolder) as moved:
        find(root, "", index=("env",))
    assert moved.value.path == b""
    assert find(root, "/", index=("env",)).name == b"/env"
    with pytest.raises(NotThere):
        find(root, "/empty/", index=("index.cgi", "shop"))


def test_handlers(root: Path) -> None:
    script = find(root, "/page.php/x", "a+b", handlers={".php": "/usr/bin/php-cgi"})
    assert script.argv == (b"/usr/bin/php-cgi", script.file)
    assert script.handled
    assert script.info == b"/x"
    (root / "page.php").chmod(0o666)
    with pytest.raises(CheckFailed, match="writable by everybody"):
        find(root, "/page.php", handlers={".php": "/usr/bin/php-cgi"})


@pytest.mark.parametrize("script", ["env", "shop/cart.pl"])
def test_one_program_for_all_paths(root: Path, script: str) -> None:
    for path in ("", "/", "/a/b.git/info/refs", "/env"):
        found = find(root, path, script=script)
        assert found.file == os.fsencode(root / script)
        assert (found.name, found.info) == (b"", path.encode())
    with pytest.raises(BadPathError):
        find(root, "/a/../b", script=script)


def test_one_program_elsewhere(root: Path) -> None:
    found = find(root, "/x", script="/usr/bin/env")
    assert found.file == b"/usr/bin/env"
    with pytest.raises(CheckFailed, match="/usr/bin/no-such-program: No such file"):
        find(root, "/x", script="/usr/bin/no-such-program")
    with pytest.raises(CheckFailed, match="a directory, and no regular file"):
        find(root, "/x", script="/usr/bin")
    (root / "shop").chmod(0o777)
    with pytest.raises(CheckFailed, match=f"{root}/shop is writable by everybody"):
        find(root, "/x", script="shop/cart.pl")
    assert find(root, "/x", script="shop/cart.pl", suexec=False).name == b""


def test_without_suexec_a_file_must_still_be_a_program(root: Path) -> None:
    (root / "env").chmod(0o777)
    with pytest.raises(CheckFailed):
        find(root, "/env")
    assert find(root, "/env", suexec=False).name == b"/env"
    for path in ("/data.txt", "/nph-raw"):
        with pytest.raises(CheckFailed):
            find(root, path, suexec=False)
    with pytest.raises(NotThere):
        find(root, "/link", suexec=False)


def test_nobody_of_the_systems_runs_anything(root: Path) -> None:
    options = Options(str(root))
    with pytest.raises(CheckFailed, match="uid 0"):
        Scripts(options, Identity.of(0, 1000, os.stat(root))).find(b"/env", b"")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", ()),
        ("a", (b"a",)),
        ("a+b%20c+%2B", (b"a", b"b c", b"+")),
        ("a=b", ()),
        ("a%3Db", (b"a=b",)),
        # options, however they are written (CVE-2012-1823)
        ("-s", ()),
        ("%2ds", ()),
        ("a+-s", ()),
        ("a+%2Ds", ()),
        ("a++b", ()),
        ("a%00b", ()),
        ("+".join(["a"] * 65), ()),
        ("a" * 5000, ()),
    ],
)
def test_words(query: str, found: tuple[bytes, ...]) -> None:
    assert words(query.encode()) == found
