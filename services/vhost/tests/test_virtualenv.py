"""A tenant's virtual environment in the process that imports the application: a process of its own for each test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from pyttpd.config.kinds import Mount, WsgiOptions
from pyttpd.virtualenv import VirtualenvError, look, version

#: Imports the application as a tenant's process does, and prints what it sees.
PROGRAM = """
import json, sys
from pyttpd import metrics
from pyttpd.config.shares import VhostShare
from pyttpd_vhost.kinds.python import load_application, prepare
class Log:
    def warning(self, event, **fields):
        print("warned:", event, fields, file=sys.stderr)
share = VhostShare.from_json(sys.stdin.buffer.read())
prepare(share, Log())
print(json.dumps(load_application(share.mounts[0].options.application)()))
"""
APPLICATION = """
import json, os, subprocess, sys
import first, second, linked, prometheus_client, pyttpd
def application():
    command = [sys.executable, "-c", "import linked; print(linked.__file__)"]
    run = subprocess.run(command, capture_output=True, text=True)
    return {
        "first": first.WHOSE, "second": second.WHOSE, "json": json.__file__, "pyttpd": pyttpd.__file__,
        "prometheus_client": prometheus_client.WHOSE, "pth": getattr(sys, "pth_ran", 0), "prefix": sys.prefix,
        "started": run.stdout.strip(), "path": os.environ["PATH"].split(":")[0],
        "VIRTUAL_ENV": os.environ["VIRTUAL_ENV"],
    }
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A root, a folder of python_path and a virtual environment, each with modules of the others' names."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    packages = Path(*look(str(tmp_path / "venv")).packages)
    files = {
        "root/app.py": APPLICATION,
        "root/first.py": "WHOSE = 'root'",
        "path/first.py": "WHOSE = 'path'",
        "path/second.py": "WHOSE = 'path'",
        "linked/linked.py": "",
    }
    for name in ("first", "second", "json", "prometheus_client", "pyttpd"):
        files[f"{packages}/{name}.py"] = "WHOSE = 'venv'"
    files[f"{packages}/x.pth"] = (
        f"{tmp_path}/linked\nnowhere\nimport sys; sys.pth_ran = sys.__dict__.get('pth_ran', 0) + 1\n"
    )
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def load(site: Path, **changes: Any) -> subprocess.CompletedProcess[str]:
    from .conftest import make_share

    share = make_share(
        root=str(site / "root"),
        python_path=(str(site / "path"),),
        virtualenv=str(site / "venv"),
        mounts=(Mount("/", WsgiOptions("app:application")),),
        **changes,
    )
    return subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM],
        input=share.to_json().decode(),
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )


def test_what_an_application_in_a_virtual_environment_sees(site: Path) -> None:
    done = load(site)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    # the tenant's folders before the standard library, that before the environment, that before ours
    assert (seen["first"], seen["second"], seen["prometheus_client"]) == ("root", "path", "venv")
    assert not seen["json"].startswith(str(site))
    assert not seen["pyttpd"].startswith(str(site))
    assert seen["pth"] == 1
    # programs that it starts with sys.executable find the environment, too
    assert seen["started"] == str(site / "linked/linked.py")
    assert seen["prefix"] == seen["VIRTUAL_ENV"] == str(site / "venv")
    assert seen["path"] == str(site / "venv/bin")


def test_env_has_the_last_word(site: Path) -> None:
    seen = json.loads(load(site, env={"VIRTUAL_ENV": "mine"}).stdout)
    assert seen["VIRTUAL_ENV"] == "mine"


def test_the_systems_packages_only_if_the_environment_wants_them(site: Path) -> None:
    config = site / "venv/pyvenv.cfg"
    program = "import sys; application = lambda: sys.path"
    (site / "root/app.py").write_text(program)
    folders = {os.path.dirname(path) for path in json.loads(load(site).stdout)}
    config.write_text(config.read_text().replace("= false", "= True"))
    more = {os.path.dirname(path) for path in json.loads(load(site).stdout)}
    assert more >= folders
    assert any(path.endswith(("/dist-packages", "/site-packages")) for path in json.loads(load(site).stdout))


def test_an_environment_that_cannot_be_used_is_said_why(site: Path) -> None:
    (site / "venv/pyvenv.cfg").write_text("version = 3.8.0\n")
    done = load(site)
    assert done.returncode == 1
    assert f"VirtualenvError: is for Python 3.8; pyttpd runs on {version()}: make it anew" in done.stderr


def test_a_config_that_cannot_be_read(site: Path) -> None:
    (site / "venv/pyvenv.cfg").unlink()
    (site / "venv/pyvenv.cfg").mkdir()
    with pytest.raises(VirtualenvError, match=r"pyvenv.cfg in it can't be read: not a regular file"):
        look(str(site / "venv"))
