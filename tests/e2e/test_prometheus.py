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
from support.tree import free_port

pytestmark = [pytest.mark.docker, pytest.mark.program("prometheus"), pytest.mark.timeout(600)]

#: Prometheus spreads first scrapes over one interval (1 s); a loaded machine takes longer to start it.
SCRAPED_WITHIN = 30.0


def ask(port: int, path: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return json.load(connection.getresponse())["data"]


def configuration(tree: Deployment) -> str:
    # JSON is YAML.
    jobs = [
        {"job_name": name, "metrics_path": path, "static_configs": [{"targets": [address]}]}
        for name, (address, path) in tree.targets().items()
    ]
    return json.dumps({"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": jobs})


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
        states = {target["labels"]["job"]: (target["health"], target["lastError"]) for target in targets}
        assert states == dict.fromkeys(tree.targets(), ("up", "")), (tmp_path / "log").read_text()[-2000:]
        # What it has stored is what the roles say they are: one information series for each.
        tree.wait_for(
            lambda: (
                len(ask(port, "/api/v1/query?query=%7B__name__%3D~%22pyttpd_.%2A_info%22%7D")["result"])
                >= len(tree.targets())
            )
        )
    finally:
        prometheus.terminate()
        prometheus.wait(10)
