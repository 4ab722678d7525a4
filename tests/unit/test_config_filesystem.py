"""`check`'s look at the file system."""

from __future__ import annotations

import os
import venv
from typing import TYPE_CHECKING

import pytest

from pyttpd.config import limits
from pyttpd.config.filesystem import check_filesystem
from pyttpd.config.loader import load_located
from pyttpd.virtualenv import version

if TYPE_CHECKING:
    from pathlib import Path

TEXT = """[listen.http]
address = "127.0.0.1:8080"
[vhost.a]
default = true
uid = 20001
kind = "wsgi"
root = "root"
application = "my_app.wsgi:app"
python_path = ["lib"]
writable = ["data"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    # The tenant's uid must be able to get here: pytest's folders are the user's own.
    for each in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        each.chmod(0o755)
    (tmp_path / "pyttpd.toml").write_text(TEXT)
    for name in ("root", "lib", "data"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o755)
    (tmp_path / "data").chmod(0o777)
    (tmp_path / "root" / "my_app").mkdir()
    for name in ("__init__.py", "wsgi.py"):
        (tmp_path / "root" / "my_app" / name).write_text("raise SystemExit('nobody imports me')\n")
    return tmp_path


def _said(folder: Path) -> list[str]:
    config, locate = load_located(folder)
    return [str(error).replace(f"{folder}/", "") for error in check_filesystem(config, locate)]


def test_all_is_well(folder: Path) -> None:
    assert _said(folder) == []


def test_the_module_may_be_in_the_path_or_installed(folder: Path) -> None:
    (folder / "root" / "my_app").rename(folder / "lib" / "my_app")
    assert _said(folder) == []
    (folder / "pyttpd.toml").write_text(TEXT.replace("my_app.wsgi", "json.tool"))
    assert _said(folder) == []


def test_what_is_not_there(folder: Path) -> None:
    (folder / "pyttpd.toml").write_text(
        TEXT.replace('"root"', '"nowhere"').replace('"data"', '"pyttpd.toml"')
    )
    assert _said(folder) == [
        "pyttpd.toml:7: [vhost.a] root: nowhere: No such file or directory",
        "pyttpd.toml:10: [vhost.a] writable: pyttpd.toml: must be a folder",
    ]


def test_no_such_module(folder: Path) -> None:
    (folder / "pyttpd.toml").write_text(TEXT.replace("my_app", "no_such_app"))
    assert _said(folder) == [
        'pyttpd.toml:8: [vhost.a] application: there is no module "no_such_app" in root, python_path'
    ]


@pytest.mark.parametrize(
    ("module", "missing"),
    [
        ("my_app.wgsi", "my_app.wgsi"),
        ("my_app.wsgi.deeper", "my_app.wsgi.deeper"),
        ("json.tol", "json"),
        ("jsn", "jsn"),
    ],
)
def test_no_such_module_in_a_package(folder: Path, module: str, missing: str) -> None:
    (folder / "pyttpd.toml").write_text(TEXT.replace("my_app.wsgi", module))
    assert _said(folder) == [
        f'pyttpd.toml:8: [vhost.a] application: there is no module "{missing}" in root, python_path'
    ]


def test_without_places_the_file_is_named(folder: Path) -> None:
    (folder / "pyttpd.toml").write_text(TEXT.replace("my_app", "no_such_app"))
    config, _ = load_located(folder)
    assert [(error.file, error.line) for error in check_filesystem(config)] == [(config.file, None)]


def test_error_pages(folder: Path) -> None:
    (folder / "pyttpd.toml").write_text(
        TEXT + 'error_pages = { 404 = "404.html", 5xx = ".pages/sorry.html", 403 = "404.html" }\n'
    )
    line = "pyttpd.toml:11: [vhost.a] error_pages: "
    sorry, missing = folder / "root/.pages/sorry.html", folder / "root/404.html"
    assert _said(folder) == [
        f"{line}root/.pages/sorry.html: No such file or directory",
        f"{line}root/404.html: No such file or directory",
    ]
    sorry.parent.mkdir(mode=0o755)
    sorry.touch(mode=0o644)
    missing.mkdir(mode=0o755)
    assert _said(folder) == [f"{line}root/404.html: must be a regular file"]
    missing.rmdir()
    missing.symlink_to(folder / "pyttpd.toml")
    assert _said(folder) == [f"{line}root/404.html: must not lead out of the root"]
    missing.unlink()
    missing.symlink_to(".pages/sorry.html")
    assert _said(folder) == []
    os.truncate(sorry, limits.MAX_ERROR_PAGE_BYTES + 1)
    assert _said(folder) == [
        f"{line}root/{name}: must be at most 1048576 bytes" for name in (".pages/sorry.html", "404.html")
    ]
    os.truncate(sorry, 5)
    sorry.chmod(0)
    assert len(_said(folder)) == 2


def test_logs(folder: Path) -> None:
    logs = 'access_log_file = "logs/access.log"\nerror_log_file = "data/error.log"\n'
    (folder / "pyttpd.toml").write_text(TEXT.replace('writable = ["data"]', logs))
    missing, *more = _said(folder)
    assert missing.startswith("pyttpd.toml:10: [vhost.a] access_log_file: logs: must be a folder")
    assert more == []
    (folder / "logs").symlink_to("data")
    (folder / "data/error.log").mkdir()
    assert _said(folder) == [
        (
            "pyttpd.toml:10: [vhost.a] access_log_file: logs/access.log: must not lead through a symbolic link; "
            "write data/access.log"
        ),
        "pyttpd.toml:11: [vhost.a] error_log_file: data/error.log: must be a regular file",
    ]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="looks with the eyes of other uids")
def test_logs_that_a_tenant_may_not_write(folder: Path) -> None:
    logs = 'access_log_file = "logs/access.log"\nerror_log_file = "logs/error.log"\n'
    (folder / "pyttpd.toml").write_text(TEXT + logs)
    assert _said(folder)[0].endswith(
        "logs: must be a folder (make it: install -d -o 20001 -g 20001 -m 0750 logs)"
    )
    (folder / "logs").mkdir(mode=0o755)
    (folder / "logs/error.log").touch(0o644)
    assert _said(folder) == [
        (
            "pyttpd.toml:11: [vhost.a] access_log_file: logs: uid 20001 (group 20001) may not write and enter it "
            "(make the file: install -o 20001 -g 20001 -m 0640 /dev/null logs/access.log)"
        ),
        "pyttpd.toml:12: [vhost.a] error_log_file: logs/error.log: uid 20001 (group 20001) may not write it",
    ]
    os.chown(folder / "logs", 20001, 20001)
    os.chown(folder / "logs/error.log", 20001, 20001)
    assert _said(folder) == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="looks with the eyes of other uids")
def test_a_tenant_who_may_not(folder: Path) -> None:
    (folder / "root").chmod(0o700)
    (folder / "data").chmod(0o755)
    os.chown(folder / "lib", 20001, 0)
    (folder / "lib").chmod(0o500)
    assert _said(folder) == [
        "pyttpd.toml:7: [vhost.a] root: root: uid 20001 (group 20001) may not read and enter it",
        "pyttpd.toml:10: [vhost.a] writable: data: uid 20001 (group 20001) may not read, write and enter it",
    ]
    os.chown(folder / "data", 0, 20001)
    (folder / "data").chmod(0o070)
    (folder / "root").chmod(0o755)
    folder.chmod(0o700)
    assert [line.split(": ", 2)[2] for line in _said(folder)] == [
        f"{folder}: uid 20001 (group 20001) may not enter it"
    ] * 3


def test_an_ordinary_user_has_one_uid(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "access", lambda path, _rights: not str(path).endswith("root"))
    assert _said(folder) == ["pyttpd.toml:7: [vhost.a] root: root: you (1000) may not read and enter it"]


# ---- virtual environments ------------------------------------------------------------------------------------------


@pytest.fixture
def environment(folder: Path) -> Path:
    """A virtual environment, as the standard library makes it, that is configured and has the application in it."""
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    packages = folder / "venv" / f"lib/python{version()}/site-packages"
    (folder / "root" / "my_app").rename(packages / "my_app")
    (folder / "pyttpd.toml").write_text(TEXT + 'virtualenv = "venv"\n')
    return packages


def test_what_only_an_editable_install_can_find_is_left_to_it(folder: Path, environment: Path) -> None:
    (environment / "my_app").rename(folder / "elsewhere")
    assert "there is no module" in "".join(_said(folder))
    (environment / "__editable___my_app_1_0_finder.py").touch()
    assert _said(folder) == []


@pytest.fixture
def config(environment: Path) -> Path:
    return environment.parents[2] / "pyvenv.cfg"


def test_a_virtual_environment_holds_a_program(folder: Path, environment: Path) -> None:
    mount = '[[vhost.a.mount]]\npath = "/{}"\nkind = "{}"\n{}\n'
    mounts = mount.format("", "wsgi", 'application = "my_app.wsgi:app"')
    mounts += mount.format("s", "scgi", 'command = ["my-server"]')
    text = (folder / "pyttpd.toml").read_text()
    kept = [line for line in text.splitlines() if not line.startswith(("kind", "application"))]
    (folder / "pyttpd.toml").write_text("\n".join([*kept, mounts]))
    assert ["my-server: there is no such program" in each for each in _said(folder)] == [True]
    program = environment.parents[2] / "bin" / "my-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert _said(folder) == []


def test_a_virtual_environment_holds_the_application(folder: Path, environment: Path) -> None:
    assert _said(folder) == []
    (environment / "my_app").rename(folder / "root" / "other")
    assert _said(folder) == [
        'pyttpd.toml:8: [vhost.a] application: there is no module "my_app" in root, python_path and virtualenv'
    ]


def test_a_virtual_environment_that_is_none(folder: Path, config: Path) -> None:
    make = f"(python{version()} -m venv venv)"
    assert config.read_text()
    config.unlink()
    start = "pyttpd.toml:11: [vhost.a] virtualenv: venv: "
    assert _said(folder) == [f"{start}is no virtual environment, it has no pyvenv.cfg: make one {make}"]
    (folder / "venv").rename(folder / "old")
    assert _said(folder) == [f"{start}there is no such folder: make it {make}"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("version = 3.9.1", "is for Python 3.9; pyttpd runs on"),
        ("version_info = 3.9.1.final.0", "is for Python 3.9; pyttpd runs on"),
        ("implementation = PyPy", "is for PyPy; pyttpd runs on CPython: make it anew"),
        (f"version_info = {version()}.0.final.0", ""),
        ("", ""),
        ("\0\xff=\n=", ""),
    ],
)
def test_a_virtual_environment_for_another_python(folder: Path, config: Path, text: str, says: str) -> None:
    config.write_text(text)
    said = _said(folder)
    assert len(said) == bool(says)
    assert says in "".join(said)


def test_a_virtual_environment_without_packages(folder: Path, environment: Path) -> None:
    (environment / "my_app").rename(folder / "root" / "my_app")
    environment.rename(folder / "elsewhere")
    assert "venv: has no lib/python" in "".join(_said(folder))


def test_folders_that_pth_files_name(folder: Path, environment: Path) -> None:
    """Nothing of them is run, and what the tenant couldn't read is told."""
    (folder / "shared").mkdir()
    (environment / "my_app").rename(folder / "shared" / "my_app")
    lines = [
        "# comment",
        "import os; os._exit(3)",
        "",
        str(folder / "shared"),
        "nowhere",
        str(folder / "root"),
        "/usr/lib",
    ]
    (environment / "x.pth").write_text("\n".join(lines))
    (told,) = _said(folder)
    assert told == (
        f"pyttpd.toml:11: [vhost.a] virtualenv: venv/lib/python{version()}/site-packages/x.pth names shared, which the "
        "tenant can't read: add that to python_path"
    )
    (folder / "pyttpd.toml").write_text(
        TEXT.replace('["lib"]', '["lib", "shared"]') + 'virtualenv = "venv"\n'
    )
    assert _said(folder) == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="looks with the eyes of other uids")
def test_a_virtual_environment_of_somebody_else(folder: Path, environment: Path) -> None:
    (folder / "venv").chmod(0o700)
    assert _said(folder) == [
        "pyttpd.toml:11: [vhost.a] virtualenv: venv: uid 20001 (group 20001) may not enter it"
    ]


@pytest.mark.parametrize("trap", ["FIFO", "device", "endless", "a link to itself", "a folder"])
@pytest.mark.parametrize("where", ["pyvenv.cfg", "x.pth"])
def test_traps_in_a_virtual_environment(folder: Path, environment: Path, where: str, trap: str) -> None:
    """It is the tenant's, and who looks may be root: nothing there keeps `check` waiting, and no device is opened."""
    place = folder / "venv" / where if where == "pyvenv.cfg" else environment / where
    place.unlink(missing_ok=True)
    match trap:
        case "FIFO":
            os.mkfifo(place)
        case "device":
            place.symlink_to("/dev/full")  # which could be read without end
        case "endless":
            with place.open("wb") as file:
                file.truncate(1 << 40)
        case "a link to itself":
            place.symlink_to(place)
        case _:
            place.mkdir()
    said = _said(folder)
    assert len(said) == (where == "pyvenv.cfg" and trap != "endless"), said


def test_pth_files_without_end(folder: Path, environment: Path) -> None:
    """As many as a tenant likes, with anything in them: what is looked at is bounded."""
    for number in range(300):
        (environment / f"{number:03}.pth").write_bytes(b"a\0b\n/\xff\n" + b"/etc\n" * 100)
    said = _said(folder)
    assert 0 < len(said) <= 1024
    assert all("names /etc, which the tenant can't read: add that to python_path" in line for line in said)


def test_programs(folder: Path) -> None:
    """A mount of kind cgi: the folder, the one program, and the interpreters."""
    (folder / "cgi").mkdir()
    (folder / "cgi").chmod(0o755)
    (folder / "cgi" / "text.pl").write_text("#!/usr/bin/perl")
    (folder / "cgi" / "text.pl").chmod(0o644)
    text = TEXT.partition("kind =")[0] + 'root = "root"\n'
    mount = '[[vhost.a.mount]]\npath = "/{}"\nkind = "cgi"\n{}\n'
    good = [
        mount.format("a", 'root = "cgi"'),
        mount.format("b", 'script = "/bin/sh"'),
        mount.format("c", 'script = "cgi/text.pl"\nhandlers = { pl = "/bin/sh" }'),
    ]
    (folder / "pyttpd.toml").write_text(text + "".join(good))
    assert _said(folder) == []
    bad = [
        mount.format("a", 'root = "none"'),
        mount.format("b", 'script = "cgi"'),
        mount.format("c", 'script = "cgi/none"'),
        mount.format("d", 'script = "cgi/text.pl"'),
        mount.format("e", 'root = "cgi"\nhandlers = { pl = "/usr/bin/none" }'),
    ]
    (folder / "pyttpd.toml").write_text(text + "".join(bad))
    place = "[[vhost.a.mount]]"
    said = _said(folder)
    assert [each.partition(": ")[2].partition(": ")[0] for each in said] == [
        *(f"{place} root", f"{place} script", f"{place} script", f"{place} script", f"{place} handlers"),
    ]
    assert said[0].endswith("none: No such file or directory")
    assert said[1].endswith("cgi: must be a program, and it is no regular file")
    assert said[2].endswith("cgi/none: No such file or directory")
    assert "may not" in said[3]
    assert said[3].endswith("run it")
    assert said[4].endswith("/usr/bin/none: No such file or directory")


def test_programs_lie_where_the_tenant_may_run_them(folder: Path) -> None:
    """Its locks let it run what is below its root, the folders that it names, and the system's."""
    (folder / "other").mkdir()
    for name in ("root/program", "other/program"):
        (folder / name).write_text("#!/bin/sh")
    for path in (folder / "other", folder / "root/program", folder / "other/program"):
        path.chmod(0o755)
    vhost = TEXT[: TEXT.index("kind")] + 'root = "root"\n'
    mount = '[[vhost.a.mount]]\npath = "/{}"\nkind = "{}"\n{}\n'
    mounts = "".join(
        mount.format(f"{kind}{number}", kind, key.format(f"{folder}/{name}/program"))
        for kind, key in (
            ("cgi", 'script = "{}"'),
            ("scgi", 'command = ["{}"]'),
            ("handoff", 'command = ["{}"]'),
        )
        for number, name in enumerate(("root", "other"))
    )
    (folder / "pyttpd.toml").write_text(vhost + mounts)
    said = _said(folder)
    assert [each.partition(" ")[2].partition(": ")[0] for each in said] == [
        f"[[vhost.a.mount]] {key}" for key in ("script", "command", "command")
    ]
    assert all("the tenant may run nothing there" in each for each in said)


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        ("asgi", 'application = "nowhere:app"', 'application: there is no module "nowhere"'),
        ("handoff", 'command = ["no-such-program"]', "command: no-such-program: there is no such program"),
        ("handoff", 'socket = "none/app.sock"', "socket: none: No such file or directory"),
    ],
)
def test_what_every_kind_names_is_looked_for(folder: Path, kind: str, keys: str, message: str) -> None:
    text = (
        TEXT[: TEXT.index("kind")]
        + f'root = "root"\n[[vhost.a.mount]]\npath = "/"\nkind = "{kind}"\n{keys}\n'
    )
    (folder / "pyttpd.toml").write_text(text)
    [said] = _said(folder)
    assert message in said


def test_applications_in_other_processes(folder: Path) -> None:
    """Mounts of the kinds fastcgi and scgi: the folder, the program, and where the socket is."""
    (folder / "server").write_text("#!/bin/sh")
    (folder / "server").chmod(0o644)
    vhost = TEXT[: TEXT.index("kind")] + 'root = "root"\n'
    mount = '[[vhost.a.mount]]\npath = "/{}"\nkind = "{}"\n{}\n'
    good = [
        mount.format("a", "fastcgi", 'command = ["sh", "-c", "x"]\nroot = "data"'),
        mount.format("b", "scgi", 'socket = "data/none-yet.sock"'),
    ]
    (folder / "pyttpd.toml").write_text(vhost + "".join(good))
    assert _said(folder) == []
    bad = [
        mount.format("a", "fastcgi", 'command = ["no-such-program"]\nroot = "none"'),
        mount.format("b", "scgi", 'socket = "none/app.sock"'),
        mount.format("c", "scgi", f'command = ["{folder}/server"]'),
    ]
    (folder / "pyttpd.toml").write_text(vhost + "".join(bad))
    assert _said(folder) == [
        "pyttpd.toml:11: [[vhost.a.mount]] root: none: No such file or directory",
        "pyttpd.toml:10: [[vhost.a.mount]] command: no-such-program: there is no such program",
        "pyttpd.toml:15: [[vhost.a.mount]] socket: none: No such file or directory",
        "pyttpd.toml:19: [[vhost.a.mount]] command: server: there is no such program",
    ]
    own = vhost.replace('root = "root"', 'root = "root"\nkind = "scgi"')
    (folder / "pyttpd.toml").write_text(own + '[vhost.a.scgi]\nsocket = "none/app.sock"\n')
    assert _said(folder) == ["pyttpd.toml:9: [vhost.a.scgi] socket: none: No such file or directory"]


def test_what_a_tenant_sees_beside_its_root(folder: Path) -> None:
    """Folders of mounts and of sockets; what lies below its root or `writable` is there already, and stays writable."""
    vhost = TEXT[: TEXT.index("kind")] + 'root = "root"\nwritable = ["data"]\n'
    mount = '[[vhost.a.mount]]\npath = "/{}"\nkind = "{}"\n{}\n'
    mounts = [
        mount.format("a", "static", 'root = "lib"'),
        mount.format("b", "static", 'root = "data/media"'),
        mount.format("c", "scgi", 'socket = "data/run/app.sock"'),
        mount.format("d", "scgi", 'socket = "elsewhere/app.sock"'),
        mount.format("e", "fastcgi", 'command = ["x"]\nroot = "root/public"'),
    ]
    (folder / "pyttpd.toml").write_text(vhost + "".join(mounts))
    seen = load_located(folder)[0].vhost("a").folders
    assert seen == (str(folder / "lib"), str(folder / "elsewhere"))
