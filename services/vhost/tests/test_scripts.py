"""Which script a path means (kinds/gateway/scripts.py), and that what was true is asked again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyttpd_vhost.kinds.gateway import scripts as module
from pyttpd_vhost.kinds.gateway.scripts import Rules, Script, Scripts

RULES = Rules((b".php",), (b"index.php",), b"front.php")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "a.php").write_text("in")
    (folder / "front.php").write_text("front")
    (tmp_path / "out.php").write_text("out")
    return folder


@pytest.fixture
def scripts(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripts]:
    """They are remembered at once, as if they had been there for long."""
    monkeypatch.setattr(module, "settled", lambda status: True)
    made = Scripts(str(root), RULES)
    yield made
    made.close()


def opened(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The paths that are opened from now on."""
    paths: list[bytes] = []
    real = scripts._root.open

    def watched(path: bytes) -> int:
        paths.append(path)
        return real(path)

    monkeypatch.setattr(scripts._root, "open", watched)
    return paths


def test_one_that_is_there_is_opened_once(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = opened(scripts, monkeypatch)
    for _ in range(3):
        assert scripts.find(b"/a.php") == Script(b"a.php", b"")
        assert scripts.find(b"/a.php/x") == Script(b"a.php", b"/x")
    assert paths == [b"a.php"]


def replaced_by_a_link_out(path: Path) -> None:
    path.unlink()
    path.symlink_to("../out.php")


def renamed_over_by_a_link_out(path: Path) -> None:
    other = path.with_name("other")
    other.symlink_to(path.parent.parent / "out.php")
    other.rename(path)


def replaced_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replaced_by_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "change",
    [
        Path.unlink,
        replaced_by_a_link_out,
        renamed_over_by_a_link_out,
        replaced_by_a_folder,
        replaced_by_a_pipe,
    ],
)
def test_one_that_was_there_and_is_none_now(scripts: Scripts, root: Path, change: object) -> None:
    assert scripts.find(b"/a.php") == Script(b"a.php", b"")
    change(root / "a.php")  # type: ignore[operator]
    for _ in range(2):
        assert scripts.find(b"/a.php") == Script(b"front.php", b"")
    if not (root / "a.php").is_dir():
        (root / "a.php").unlink(missing_ok=True)
        (root / "a.php").write_text("again")
        assert scripts.find(b"/a.php") == Script(b"a.php", b"")


def test_its_folder_becomes_a_link_out(scripts: Scripts, root: Path) -> None:
    (root / "folder").mkdir()
    (root / "folder" / "b.php").write_text("in")
    assert scripts.find(b"/folder/b.php") == Script(b"folder/b.php", b"")
    (root / "folder").rename(root.parent / "elsewhere")
    (root / "folder").symlink_to("../elsewhere")
    # the same file, and a name that leads out of the root
    assert scripts.find(b"/folder/b.php") == Script(b"front.php", b"")


def test_a_name_before_it_becomes_a_script(scripts: Scripts, root: Path) -> None:
    """The first that is a file is the script, whatever was one before."""
    (root / "x.php").mkdir()
    (root / "x.php" / "b.php").write_text("in")
    for _ in range(2):
        assert scripts.find(b"/x.php/b.php") == Script(b"x.php/b.php", b"")
    (root / "x.php").rename(root / "y.php")
    (root / "x.php").write_text("in")
    for _ in range(2):
        assert scripts.find(b"/x.php/b.php") == Script(b"x.php", b"/b.php")
    assert scripts.find(b"/y.php/b.php") == Script(b"y.php/b.php", b"")


def test_memory_is_bounded(scripts: Scripts, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_REMEMBERED", 4)
    for number in range(20):
        name = b"%d.php" % number
        (root / os.fsdecode(name)).write_text("in")
        assert scripts.find(b"/" + name) == Script(name, b"")
        assert len(scripts._plain) <= len(scripts._known) <= 4
    long = b"x" * 200 + b"/" + b"y" * 200 + b".php"
    (root / os.fsdecode(long)).parent.mkdir()
    (root / os.fsdecode(long)).write_text("in")
    assert scripts.find(b"/" + long) == Script(long, b"")
    assert long not in scripts._known


def test_one_that_has_just_changed_is_not_remembered(root: Path) -> None:
    made = Scripts(str(root), RULES)
    try:
        assert made.find(b"/a.php") == Script(b"a.php", b"")
        assert not made._known
    finally:
        made.close()
