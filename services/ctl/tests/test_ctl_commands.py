"""check, run, routes, version, and the form of all errors: exit status, one line, standard error."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click
import pytest
from click.testing import CliRunner, Result

from pyttpd import __version__, admin

from pyttpd_ctl import main

if TYPE_CHECKING:
    from pathlib import Path

TEXT = """[listen.http]
address = "127.0.0.1:8080"
[vhost.blog]
hosts = ["blog.example", "*.blog.example"]
uid = 20001
kind = "static"
root = "site"
[vhost.shop]
hosts = ["shop.example", "[::1]"]
uid = 20002
kind = "static"
root = "."
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    for each in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        each.chmod(0o755)
    path = tmp_path / "pyttpd.toml"
    path.write_text(TEXT)
    (tmp_path / "site").mkdir()
    return path


def invoke(*args: object) -> Result:
    return CliRunner().invoke(main.cli, [str(arg) for arg in args])


def command(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyttpd_ctl", *[str(arg) for arg in args]],
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_check_valid(file: Path) -> None:
    result = invoke("check", file)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{file}: valid: 1 listener, 2 vhosts, 4 host names\n"
    assert invoke("check", file.parent).exit_code == 0


def test_check_quiet(file: Path) -> None:
    result = invoke("check", "--quiet", file)
    assert (result.exit_code, result.output) == (0, "")


def test_check_tells_everything(file: Path) -> None:
    file.write_text(TEXT.replace("hosts", "host").replace('root = "."\n', ""))
    result = invoke("check", "-q", file)
    assert (result.exit_code, result.stdout) == (1, "")
    lines = result.stderr.splitlines()
    assert len(lines) == 6
    assert lines[0].startswith(f"{file}:3: [vhost.blog]: hosts is missing")
    assert lines[1] == f'{file}:4: [vhost.blog] host: unknown key; did you mean "hosts"?'
    assert lines[-1] == f"{file}: not valid: 5 errors"


def test_check_looks_at_the_files(file: Path) -> None:
    (file.parent / "site").rmdir()
    result = invoke("check", file)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"{file}:7: [vhost.blog] root: {file.parent}/site: No such file or directory",
        f"{file}: not valid: 1 error",
        "Are these in tenants' containers? Nobody can look there from here: --no-files.",
    ]
    assert invoke("check", "--no-files", file).exit_code == 0


def test_routes(file: Path) -> None:
    result = invoke("routes", file, "BLOG.example:8080", "x.y.blog.example", "[0:0::1]")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines() if "example" in line or "::1" in line]
    assert rows == [
        ["BLOG.example:8080", "blog", "20001", "exact", "name"],
        ["x.y.blog.example", "blog", "20001", "wildcard", "*.blog.example"],
        ["[0:0::1]", "shop", "20002", "exact", "name"],
    ]


def test_routes_that_lead_nowhere(file: Path) -> None:
    result = invoke("routes", file, "other.example", "a..b", "b\u00fccher.example", "", "[bold]x\x1b[1m")
    assert result.exit_code == 1
    assert "other.example" in result.stdout
    assert "answered 421" in result.stdout
    assert "malformed host: browsers send punycode (xn--...): answered 400" in result.stdout
    assert "(none)" in result.stdout
    assert "[bold]x[1m" in result.stdout
    assert "\x1b" not in result.stdout


def test_routes_as_json(file: Path) -> None:
    result = invoke("routes", "--json", file, "blog.example", "other.example", "a b")
    assert json.loads(result.stdout) == [
        {
            "asked": "blog.example",
            "host": "blog.example",
            "vhost": "blog",
            "why": "exact name",
            "status": None,
        },
        {
            "asked": "other.example",
            "host": "other.example",
            "vhost": None,
            "why": "nobody owns this name and there is no default vhost",
            "status": 421,
        },
        {"asked": "a b", "host": None, "vhost": None, "why": "malformed host", "status": 400},
    ]
    assert result.exit_code == 1


def test_routes_of_an_invalid_configuration(file: Path) -> None:
    file.write_text("[\n")
    result = invoke("routes", file, "a.example")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.endswith("not valid: 1 error\n")


def test_run_becomes_init(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(os, "execv", lambda *args: called.append(args))
    monkeypatch.chdir(file.parent)
    assert invoke("run", "pyttpd.toml").exit_code == 0
    assert called == [
        (sys.executable, [sys.executable, "-I", "-m", "pyttpd_init", "--plain", "--config", str(file)]),
    ]


def test_run_without_the_roles(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    result = invoke("run", file)
    assert result.exit_code == 1
    assert "pyttpd_init is missing" in result.stderr


def test_run_when_it_cannot_start(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> None:
        raise OSError(8, "Exec format error")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(os, "execv", fail)
    result = invoke("run", file)
    assert result.exit_code == 1
    assert "Exec format error" in result.stderr


def test_schema() -> None:
    result = invoke("schema")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["properties"]["vhost"]["type"] == "object"


def test_version() -> None:
    result = invoke("version")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"pyttpd {__version__} (Python ")
    assert invoke("--version").stdout == f"pyttpd {__version__}\n"


@pytest.mark.parametrize("name", [None, "check", "run", "routes", "status", "version"])
def test_help_has_examples(name: str | None) -> None:
    result = invoke(*([name] if name else []), "--help")
    assert result.exit_code == 0
    assert f"\n    pyttpd {name or ''}" in result.stdout


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["chek"], "pyttpd: No such command 'chek'"),
        (["check"], "pyttpd check: Missing argument 'FILE'"),
        (["check", "/nowhere/x\x1b"], "pyttpd check: Invalid value for 'FILE'"),
        (["check", "--loud", "."], "pyttpd check: No such option"),
        (["status", "--metrics", "example.org:9100"], "pyttpd status: Invalid value for --metrics"),
        (["status", "--metrics", "127.0.0.1:70000"], "pyttpd status: Invalid value for --metrics"),
        (["status", "--metrics", "127.0.0.1:9100", "--config", "."], "pyttpd status: --metrics and --config"),
    ],
)
def test_wrong_usage_is_one_line(
    args: list[str], expected: str, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["pyttpd", *args])
    with pytest.raises(SystemExit) as caught:
        main.main()
    out, err = capfd.readouterr()
    assert caught.value.code == 2
    assert out == ""
    assert err.startswith(expected)
    assert err.endswith("--help)\n")
    assert err.rstrip("\n").isprintable()


def test_as_a_program(file: Path) -> None:
    result = command("check", file)
    assert (result.returncode, result.stderr) == (0, "")
    result = command("check", "--no-files", "/dev/null")
    assert result.returncode == 1
    result = command()
    assert (result.returncode, result.stdout) == (2, "")
    assert "Usage: pyttpd" in result.stderr
    result = command("nonsense")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1


def test_whoever_reads_us_may_go_away(file: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as pipe:
        result = subprocess.run(
            [sys.executable, "-m", "pyttpd_ctl", "routes", str(file), "blog.example"],
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
        )
    assert (result.returncode, result.stderr) == (1, "")


def test_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(**_settings: object) -> None:
        raise click.Abort

    monkeypatch.setattr(main.cli, "main", interrupt)
    with pytest.raises(SystemExit) as caught:
        main.main()
    assert caught.value.code == 130


def test_reload_asks_where_it_is_told(file: Path) -> None:
    """Nobody is there: what it is told, and whom it looks for, is all that can be seen of it without a tree."""
    for arguments in (
        ("reload", "--runtime-dir", file.parent),
        ("reload", "--dry-run", "--runtime-dir", file.parent),
        ("reload", "--quiet", "blog", "--runtime-dir", file.parent),
    ):
        result = invoke(*arguments)
        assert result.exit_code == 3
        assert f"no admin channel below {file.parent}" in result.stderr
    file.write_text(f'runtime_dir = "{file.parent}/run"\n' + TEXT)
    result = invoke("reload", "--config", file)
    assert (result.exit_code, f"no admin channel below {file.parent}/run" in result.stderr) == (3, True)
    file.write_text("[[[")
    assert invoke("reload", "--config", file).exit_code == 1


def test_reload_warns_of_files_where_the_tree_sees_what_we_see(file: Path) -> None:
    """As `check` would tell them; in containers, and for one tenant's new code, nobody looks."""
    run = file.parent / "run"
    file.write_text(f'runtime_dir = "{run}"\n' + TEXT.replace('root = "', 'root = "/nowhere'))
    gone = "No such file or directory"
    assert gone in invoke("check", file).stderr
    assert gone not in invoke("reload", "--config", file).stderr
    run.mkdir()
    (run / "lock").touch()
    result = invoke("reload", "--config", file)
    assert (result.exit_code, "warning: " in result.stderr, gone in result.stderr) == (3, True, True)
    assert gone not in invoke("reload", "blog", "--config", file).stderr


def test_reload_that_nobody_waits_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C ends the waiting, and says so."""

    def interrupted(*_arguments: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(admin, "find", lambda _: "/nowhere")
    monkeypatch.setattr(admin, "ask", interrupted)
    assert admin.command("", "", dry_run=False) == 130
    assert "it goes on: `pyttpd status`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [("--dry-run", "blog"), ("No Name",), ("--config", ".", "--runtime-dir", "/run"), ("a", "b")],
)
def test_reload_wrong_usage(arguments: tuple[str, ...]) -> None:
    assert invoke("reload", *arguments).exit_code == 2
