"""What is committed: nothing of the machine it was written on, and locks that are whole."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
#: Hosts stand after a scheme, in apt's sources as well as in pip's configuration.
HOST = re.compile(r"https?://(?:[^/\s@]*@)?([^/:\s\"']+\.[^/:\s\"']+)")
#: Places that are named for their own sake.
STANDARD = frozenset(
    map(Path, ("/", "/home", "/mnt", "/opt", "/root", "/run", "/srv", "/tmp", "/usr/src", "/var/tmp"))
)
LOCKS = sorted([*TOP.glob("requirements/*.lock"), *TOP.glob("services/*/requirements.lock")])


def committed() -> list[Path]:
    """Return the files that git knows or would add."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=TOP,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("not a git repository")
    paths = [TOP / name for name in os.fsdecode(done.stdout).split("\0") if name]
    return [path for path in paths if path.is_file()]


def registry_hosts() -> set[str]:
    """Return the package registries' hosts that this machine's clients are set up for, and pip's default."""
    texts = [
        path.read_text(errors="replace") for path in Path("/etc/apt").glob("sources.list*") if path.is_file()
    ]
    texts += [
        path.read_text(errors="replace")
        for path in Path("/etc/apt/sources.list.d").glob("*")
        if path.is_file()
    ]
    commands = (
        [sys.executable, "-m", "pip", "config", "list"],
        ["python3", "-m", "pip", "config", "list"],
        [
            "python3",
            "-c",
            "from pip._internal.models.index import PyPI as p; print(p.url, 'https://' + p.file_storage_domain)",
        ],
        ["npm", "config", "get", "registry"],
    )
    for command in commands:
        try:
            texts.append(
                subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
    return {host.lower() for text in texts for host in HOST.findall(text)}


def test_no_file_names_a_package_registrys_host() -> None:
    hosts = sorted(registry_hosts())
    if not hosts:
        pytest.skip("no package client is set up here")
    pattern = re.compile("|".join(map(re.escape, hosts)).encode(), re.IGNORECASE)
    named = {str(path.relative_to(TOP)) for path in committed() if pattern.search(path.read_bytes())}
    assert not named


def test_no_file_names_the_folder_that_this_repository_lies_in() -> None:
    here = [str(TOP) + "/"]
    if TOP.parent not in STANDARD:
        here.append(str(TOP.parent) + "/")
    pattern = re.compile(b"|".join(re.escape(path.encode()) for path in here))
    named = {str(path.relative_to(TOP)) for path in committed() if pattern.search(path.read_bytes())}
    assert not named


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: str(path.relative_to(TOP)))
def test_a_lock_pins_everything_by_hash_and_names_no_index(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text
    entries = [entry for entry in re.split(r"\n(?=[a-z])", "\n" + text) if re.match(r"[a-z]", entry)]
    assert entries
    for entry in entries:
        assert re.match(r"[a-z0-9-]+==[^ ]+ ", entry), entry.splitlines()[0]
        assert "--hash=sha256:" in entry, entry.splitlines()[0]


def test_a_package_has_one_version_in_all_locks() -> None:
    versions: dict[str, set[str]] = {}
    for lock in LOCKS:
        for name, version in re.findall(r"^([a-z0-9-]+)==([^ ]+)", lock.read_text(), re.MULTILINE):
            versions.setdefault(name, set()).add(version)
    assert {name for name, found in versions.items() if len(found) > 1} == set()


@pytest.mark.parametrize(
    "service", sorted(path.parent.name for path in TOP.glob("services/*/requirements.lock"))
)
def test_a_services_lock_holds_what_it_depends_on(service: str) -> None:
    locked = set(
        re.findall(
            r"^([a-z0-9-]+)==", (TOP / "services" / service / "requirements.lock").read_text(), re.MULTILINE
        )
    )
    for path in (TOP / "pyproject.toml", TOP / "services" / service / "pyproject.toml"):
        for requirement in tomllib.loads(path.read_text())["project"]["dependencies"]:
            name = re.split(r"[<>=]", requirement)[0]
            assert name == "pyttpd" or name in locked, f"{name}: run 'make lock'"


def test_scripts_can_be_executed() -> None:
    for path in (*TOP.glob("scripts/*"), TOP / ".ci/run"):
        if path.is_file() and path.suffix == "":
            assert os.access(path, os.X_OK), path
            assert path.read_bytes().startswith(b"#!"), path


def test_every_word_of_make_is_explained() -> None:
    text = (TOP / "Makefile").read_text()
    targets = {name for line in re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE) for name in line.split()}
    explained = set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))
    assert targets == explained
