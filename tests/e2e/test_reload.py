"""`docker compose exec master pyttpd reload`: as without containers, but for what takes a container."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.compose import Deployment, running
from support.images import TOP

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.timeout(600)]


class Site:
    """A tree whose configuration the test may edit."""

    def __init__(self, tree: Deployment, folder: Path) -> None:
        self.tree = tree
        self.file = folder / "pyttpd.toml"

    def change(self, old: str, new: str) -> None:
        text = self.file.read_text()
        assert old in text
        self.file.write_text(text.replace(old, new))

    def reload(self, *arguments: str, user: str = "0") -> tuple[int, str]:
        command = ["docker", "compose", "--project-name", self.tree.project, "exec", "-T", "--user", user]
        done = subprocess.run(
            [*command, "master", "pyttpd", "reload", *arguments],
            cwd=TOP,
            env=self.tree.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stdout + done.stderr

    def pids(self, service: str) -> set[int]:
        return {process.pid for process in self.tree.processes(service)}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    folder = Path(tempfile.mkdtemp(prefix="pyttpd-reload-", dir="/tmp"))
    try:
        shutil.copytree(TOP / "examples/compose", folder, dirs_exist_ok=True)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        with running("reload", PYTTPD_CONFIG=str(folder)) as tree:
            tree.wait_for(tree.serves)
            yield Site(tree, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_reload_under_load(site: Site) -> None:
    """New workers for who has changed, nothing for who hasn't, and every request is answered."""
    tree, wrong, over = site.tree, [], threading.Event()
    static, wsgi = site.pids("vhost-static"), site.pids("vhost-wsgi")

    def ask() -> None:
        while not over.is_set():
            for host in ("static.localhost", "wsgi.localhost"):
                status = tree.get(host).status
                if status != 200:
                    wrong.append((host, status))

    clients = [threading.Thread(target=ask) for _ in range(2)]
    for client in clients:
        client.start()
    try:
        site.change('hosts = ["wsgi.localhost"', 'hosts = ["more.localhost", "wsgi.localhost"')
        status, text = site.reload("--dry-run")
        assert (status, "~ [vhost.wsgi]: new workers" in text) == (0, True), text
        status, text = site.reload()
        assert (status, "generation 2 is in force" in text) == (0, True), text
        assert tree.get("more.localhost").status == 200
        status, text = site.reload("static")
        assert (status, "serves with new processes" in text) == (0, True), text
        tree.wait_for(lambda: len(site.pids("vhost-static") & static) == 1)  # its keeper
    finally:
        over.set()
        for client in clients:
            client.join()
    assert not wrong
    tree.wait_for(lambda: len(site.pids("vhost-wsgi") & wsgi) == 1)
    tree.compose("kill", "--signal", "HUP", "master")  # nothing has changed, which is said in the log
    assert site.reload() == (0, "nothing has changed: generation 2 is in force\nreading the configuration\n")


def test_what_takes_a_container_is_said_and_a_port_comes_and_goes(site: Site) -> None:
    text = site.file.read_text()
    site.file.write_text(
        text
        + '\n[listen.more]\naddress = "0.0.0.0:81"\n[vhost.shop]\nhosts = ["shop.localhost"]\nuid = 20009\n'
        + 'kind = "static"\nroot = "/srv/site"\n'
    )
    status, said = site.reload()
    assert status == 0, said
    assert "+ [vhost.shop]: needs a container: docker compose up -d vhost-shop" in said
    assert "publish it in `ports` of the service net" in said
    assert "vhost shop: waits for its container" in said
    site.tree.wait_for(lambda: 'listening socket="0.0.0.0:81' in site.tree.logs("init"))
    site.file.write_text(text)
    status, said = site.reload()
    assert status == 0, said
    assert "- [listen.more]: it accepts no more" in said
    site.tree.wait_for(lambda: 'listening no more socket="0.0.0.0:81' in site.tree.logs("init"))
    assert site.tree.serves()


def test_who_is_not_let_in_changes_nothing(site: Site) -> None:
    status, text = site.reload(user="20001")
    assert (status, "you may not" in text) == (3, True), text


def test_a_bad_configuration_changes_nothing(site: Site) -> None:
    good = site.file.read_text()
    site.change('hosts = ["more.localhost"', 'hosts = ["static.localhost"')
    status, text = site.reload("--dry-run")
    site.file.write_text(good)
    assert (status, "static.localhost" in text, "nothing has changed" in text) == (1, True, True), text
