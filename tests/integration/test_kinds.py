"""A tenant of every kind, as a person meets them: the examples clicked through; and three kinds in one vhost."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.tour import TOURS
from support.tree import Tree, start

pytestmark = pytest.mark.program("php-cgi", "perl")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

#: Three kinds below one name: files first with an application behind them, programs, and PHP.
MIXED = """
[vhost.mixed]
hosts = ["mixed.localhost"]
uid = 20010
root = "mixed"

[[vhost.mixed.mount]]
path = "/"
kind = "static"
root = "mixed-files"
fallback = "@app"

[[vhost.mixed.mount]]
path = "@app"
kind = "wsgi"
application = "app:application"

[[vhost.mixed.mount]]
path = "/cgi-bin"
kind = "cgi"
root = "cgi/programs"

[[vhost.mixed.mount]]
path = "/php"
kind = "fastcgi"
root = "fastcgi/site"
command = ["php-cgi"]
processes = 1
scripts = [".php"]

[[vhost.mixed.mount]]
path = "/php/uploads"
kind = "static"
root = "mixed-uploads"
"""
APPLICATION = """
import json
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({key: environ[key] for key in ("SCRIPT_NAME", "PATH_INFO", "REQUEST_METHOD")}).encode()]
"""


def tenants() -> str:
    """The tables of examples/kinds.toml, with the folders that a tree has them in."""
    text = (EXAMPLES / "kinds.toml").read_text()
    return text[text.index("[vhost.asgi]") :] + MIXED


def files() -> dict[str, str | bytes]:
    found: dict[str, str | bytes] = {
        path.relative_to(EXAMPLES).as_posix(): path.read_bytes()
        for kind in TOURS
        for path in (EXAMPLES / kind).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return found | {
        "mixed/app.py": APPLICATION,
        "mixed-files/style.css": "body { margin: 0 }",
        "mixed-files/form.php": "<?php echo 'secret';",
        "mixed-uploads/cat.txt": "meow",
        "mixed-uploads/cat.php": "<?php echo 'run';",
    }


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(False, id="as-root", marks=pytest.mark.root),
        pytest.param(True, id="ordinary-user"),
    ],
)
def tree(request: pytest.FixtureRequest) -> Iterator[Tree]:
    tree = start(
        tenants=tenants(),
        hosts=(*[f"{kind}.localhost" for kind in TOURS], "mixed.localhost"),
        files=files(),
        ordinary=request.param,
    )
    try:
        yield tree
        tree.check_and_end()
    finally:
        if tree.process.poll() is None:
            tree.kill()
        shutil.rmtree(tree.folder, ignore_errors=True)


@pytest.mark.parametrize("kind", TOURS)
def test_an_example_is_clicked_through(tree: Tree, kind: str) -> None:
    TOURS[kind](tree)


def test_three_kinds_below_one_name(tree: Tree) -> None:
    host = "mixed.localhost"

    def app(path: str, method: str = "GET") -> dict[str, str]:
        found: dict[str, str] = json.loads(tree.request(method, host, path).body)
        return found

    # files first, and the application behind them
    assert tree.get(host, "/style.css").body == b"body { margin: 0 }"
    assert app("/")["PATH_INFO"] == "/"
    assert app("/wiki/P%61ge", "POST") == {
        "SCRIPT_NAME": "",
        "PATH_INFO": "/wiki/Page",
        "REQUEST_METHOD": "POST",
    }
    # programs
    told = tree.get(host, "/cgi-bin/environment.pl/x?a=b").body.decode()
    assert "\nSCRIPT_NAME: /cgi-bin/environment.pl\n" in told
    assert "\nPATH_INFO: /x\n" in told
    # PHP
    told = tree.get(host, "/php/server.php/x?a=b").body.decode()
    assert "\nSCRIPT_NAME: /php/server.php\n" in told
    assert "\nPATH_INFO: /x\n" in told
    assert tree.get(host, "/php").headers["location"] == "/php/"
    assert b"<strong>fastcgi</strong>" in tree.get(host, "/php/").body
    for path in ("/x/../php/server.php", "/%70hp/server.php", "//php//server.php", "/php%2Fserver.php"):
        assert b"\nSCRIPT_NAME: /php/server.php\n" in tree.get(host, path).body, path
    assert app("/phpx/server.php")["PATH_INFO"] == "/phpx/server.php"
    assert app("/cgi-bin/../x")["PATH_INFO"] == "/x"
    # what PHP would run is no file anywhere in this vhost, and nobody runs it here: it is the application's
    for path in ("/form.php", "/FORM.PHP", "/form.php.", "/form.php/", "/php/../form.php"):
        assert b"secret" not in tree.get(host, path).body, path
        assert app(path)["SCRIPT_NAME"] == "", path


def test_what_was_uploaded_is_neither_run_nor_shown(tree: Tree) -> None:
    host = "mixed.localhost"
    assert tree.get(host, "/php/uploads/cat.txt").body == b"meow"
    for path in (
        "/php/uploads/cat.php",
        "/php/uploads/cat.php/x.php",
        "/php/x/../uploads/cat.php",
        "/php/uploads/CAT.PHP",
    ):
        answer = tree.get(host, path)
        assert (answer.status, b"run" in answer.body) == (404, False), path


def test_each_has_its_own_processes_and_all_are_the_tenants(tree: Tree) -> None:
    told = tree.get("fastcgi.localhost", "/server.php").body.decode()
    uid = re.search(r"\nuid: (\d+)\n", told)
    assert uid is not None
    told = tree.get("cgi.localhost", "/environment.pl").body.decode()
    other = re.search(r"\nuid: (\d+)\n", told)
    assert other is not None
    as_root = (tree.folder / "pyttpd.toml").stat().st_uid == 0
    assert (uid[1] == "20005", other[1] == "20004") == (as_root, as_root)
