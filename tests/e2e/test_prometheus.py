"""Prometheus itself (Debian's package) scrapes every target of the compose tree."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from support.compose import Deployment
from support.images import TOP
from support.tree import free_port

pytestmark = [pytest.mark.docker, pytest.mark.program("prometheus"), pytest.mark.timeout(600)]

#: Prometheus spreads first scrapes over one interval (1 s); a loaded machine takes longer to start it.
SCRAPED_WITHIN = 30.0


def ask(port: int, path: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return json.load(connection.getresponse())["data"]


def rules(port: int) -> list[dict[str, Any]]:
    return [rule for group in ask(port, "/api/v1/rules")["groups"] for rule in group["rules"]]


def configuration(tree: Deployment) -> str:
    """Return the example's configuration with the ports that this tree has published, and the rules' own place."""
    text = (TOP / "examples/observability/prometheus.yml").read_text()
    for address, _ in tree.targets().values():
        port = int(address.rpartition(":")[2])
        ours = 9100 + port - tree.metrics_port
        if port >= tree.tenant_metrics_port:
            ours = 9109 + port - tree.tenant_metrics_port
        text = text.replace(f"net:{ours}", address)
    assert "net:" not in text
    text = text.replace("/etc/prometheus/rules.yaml", str(TOP / "k8s/pyttpd/files/rules.yaml"))
    return text.replace(
        "scrape_interval: 15s", "scrape_interval: 1s\n  scrape_timeout: 1s\n  evaluation_interval: 1s"
    )


def test_every_target_is_up(tree: Deployment, tmp_path: Path) -> None:
    (tmp_path / "prometheus.yml").write_text(configuration(tree))
    port = free_port()
    with (tmp_path / "log").open("wb") as log:
        prometheus = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={tmp_path}/prometheus.yml",
                f"--storage.tsdb.path={tmp_path}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
            cwd=tmp_path,
        )
    try:
        deadline = time.monotonic() + SCRAPED_WITHIN
        targets: list[dict[str, Any]] = []
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError, KeyError):
                targets = ask(port, "/api/v1/targets")["activeTargets"]
                if targets and all(target["health"] != "unknown" for target in targets):
                    break
            time.sleep(0.3)
        states = {target["scrapeUrl"]: (target["health"], target["lastError"]) for target in targets}
        expected = {f"http://{address}{path}": ("up", "") for address, path in tree.targets().values()}
        assert states == expected, (tmp_path / "log").read_text()[-2000:]
        # What it has stored is what the roles say they are: one information series for each.
        tree.wait_for(
            lambda: (
                len(ask(port, "/api/v1/query?query=%7B__name__%3D~%22pyttpd_.%2A_info%22%7D")["result"])
                >= len(tree.targets())
            )
        )
        # The rules are evaluated without an error, and none finds anything wrong with a healthy tree.
        tree.wait_for(lambda: all(rule["health"] == "ok" for rule in rules(port)))
        # (What was evaluated before the first scrape found nothing there; it takes another evaluation.)
        tree.wait_for(lambda: all(rule.get("state", "inactive") == "inactive" for rule in rules(port)))
    finally:
        prometheus.terminate()
        prometheus.wait(10)
