"""Rules and dashboards: promtool takes them, every alert fires when it should and only then, and no name is made up."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from support.chart import CHART
from support.images import TOP

pytestmark = pytest.mark.program("promtool")

RULES = CHART / "files/rules.yaml"
DASHBOARDS = sorted((CHART / "files/dashboards").glob("*.json"))
#: A quiet tree. "a+bxN" is N more samples, each b more than the one before; a minute lies between two.
QUIET: Final[dict[str, str]] = {
    'pyttpd_umaster_info{instance="u",name="umaster"}': "1x120",
    'pyttpd_umaster_listeners{listener="http"}': "1x120",
    'pyttpd_umaster_failing{vhost="blog"}': "0x120",
    'pyttpd_umaster_start_time_seconds{instance="u"}': "1000x120",
    'pyttpd_umaster_channel_faults_total{peer="vhost",reason="bad-frame"}': "2x120",
    'pyttpd_umaster_open_descriptors{instance="u"}': "10x120",
    'pyttpd_umaster_descriptors_limit{instance="u"}': "100x120",
    'pyttpd_umaster_queue_age_seconds{vhost="blog"}': "0x120",
    'pyttpd_umaster_refusals_total{vhost="blog",reason="queue-full"}': "0x120",
    'pyttpd_umaster_refusals_total{vhost="",reason="no-vhost"}': "0+60x120",
    'pyttpd_listener_stress{instance="l"}': "0x120",
    'pyttpd_init_accept_queue_depth{listener="http"}': "0x120",
    'pyttpd_init_accept_queue_limit{listener="http"}': "1024x120",
    'pyttpd_master_reloads_total{result="failed"}': "1x120",
    'pyttpd_master_reloads_total{result="done"}': "0+1x120",
    'pyttpd_vhost_requests_total{vhost="blog",code="2xx",instance="t"}': "0+600x120",
    'pyttpd_vhost_requests_total{vhost="blog",code="5xx",instance="t"}': "0+6x120",
    'pyttpd_vhost_limit_reached_total{vhost="blog"}': "5x120",
    'pyttpd_vhost_worker_exits_total{vhost="blog",reason="crashed"}': "5x120",
    'pyttpd_vhost_worker_exits_total{vhost="blog",reason="requests"}': "0+5x120",
    'pyttpd_vhost_request_timeouts_total{vhost="blog"}': "5x120",
    'pyttpd_vhost_backend_errors_total{vhost="blog",mount="/",reason="died"}': "1x120",
    'pyttpd_vhost_stress{vhost="blog"}': "0x120",
    'pyttpd_vhost_fork_bombs_total{vhost="blog"}': "1x120",
    'pyttpd_vhost_log_lines_lost_total{vhost="blog",log="access"}': "7x120",
}
#: What is different when an alert fires: series in place of the quiet tree's. None: a series that isn't there.
FIRING: Final[dict[str, dict[str, str | None]]] = {
    "PyttpdAbsent": {'pyttpd_umaster_info{instance="u",name="umaster"}': None},
    "PyttpdListenerGone": {'pyttpd_umaster_listeners{listener="http"}': "1x50 0x70"},
    "PyttpdStartsAgain": {'pyttpd_umaster_start_time_seconds{instance="u"}': "1000+60x120"},
    "PyttpdProtocolFault": {
        'pyttpd_umaster_channel_faults_total{peer="vhost",reason="bad-frame"}': "2x110 3x10"
    },
    "PyttpdDescriptorsShort": {'pyttpd_umaster_open_descriptors{instance="u"}': "95x120"},
    "PyttpdAcceptQueueFull": {'pyttpd_init_accept_queue_depth{listener="http"}': "1000x120"},
    "PyttpdListenerStress": {'pyttpd_listener_stress{instance="l"}': "1x120"},
    "PyttpdReloadFailed": {'pyttpd_master_reloads_total{result="failed"}': "1x110 2x10"},
    "PyttpdReloadIncomplete": {
        'pyttpd_master_waiting_seconds{role="vhost",name="blog",reason="loading"}': "0+60x120"
    },
    "PyttpdTenantFailing": {'pyttpd_umaster_failing{vhost="blog"}': "1x120"},
    "PyttpdTenantErrors": {'pyttpd_vhost_requests_total{vhost="blog",code="5xx",instance="t"}': "0+60x120"},
    "PyttpdTenantRefused": {'pyttpd_umaster_refusals_total{vhost="blog",reason="queue-full"}': "0+1x120"},
    "PyttpdTenantSlow": {'pyttpd_umaster_queue_age_seconds{vhost="blog"}': "5x120"},
    "PyttpdTenantAtItsLimit": {'pyttpd_vhost_limit_reached_total{vhost="blog"}': "0+1x120"},
    "PyttpdWorkersCrash": {'pyttpd_vhost_worker_exits_total{vhost="blog",reason="crashed"}': "0+1x120"},
    "PyttpdRequestTimeouts": {'pyttpd_vhost_request_timeouts_total{vhost="blog"}': "0+1x120"},
    "PyttpdBackendErrors": {
        'pyttpd_vhost_backend_errors_total{vhost="blog",mount="/",reason="died"}': "0+1x120"
    },
    "PyttpdTenantStress": {'pyttpd_vhost_stress{vhost="blog"}': "1x120"},
    "PyttpdForkBomb": {'pyttpd_vhost_fork_bombs_total{vhost="blog"}': "1x110 2x10"},
    "PyttpdLogLinesLost": {'pyttpd_vhost_log_lines_lost_total{vhost="blog",log="access"}': "7x110 9x10"},
}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def scenario(name: str, different: dict[str, str | None]) -> dict[str, Any]:
    series = {key: values for key, values in (QUIET | different).items() if values is not None}
    fires = [{"labels": f'{{alertname="{name}"}}', "value": 1}] if name else []
    return {
        "interval": "1m",
        "name": name or "a quiet tree",
        "input_series": [{"series": key, "values": values} for key, values in series.items()],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": "118m",
                "exp_samples": fires,
            }
        ],
    }


def test_every_alert_fires_when_it_should_and_no_other_one(tmp_path: Path) -> None:
    assert set(FIRING) == {rule["alert"] for rule in rules() if "alert" in rule}
    scenarios = [scenario("", {}), *(scenario(name, different) for name, different in FIRING.items())]
    (tmp_path / "test.yaml").write_text(json.dumps({"rule_files": [str(RULES)], "tests": scenarios}))
    done = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "test.yaml")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_recorded(tmp_path: Path) -> None:
    """Pods of one tenant are taken together; what else Prometheus knows of them stays."""
    series = {
        f'pyttpd_vhost_{name}{{vhost="blog",namespace="web",pod="{pod}",instance="{pod}:9110"{more}}}': values
        for pod in ("a", "b")
        for name, more, values in (
            ("requests_total", ',code="2xx"', "0+54x20"),
            ("requests_total", ',code="5xx"', "0+6x20"),
            ("busy_threads", "", "3x20"),
            ("threads", "", "4x20"),
        )
    }
    expected = {
        "vhost:pyttpd_requests:rate5m": 2.0,
        "vhost:pyttpd_failed_requests:ratio5m": 0.1,
        "vhost:pyttpd_busy_threads:ratio": 0.75,
    }
    tests = {
        "interval": "1m",
        "input_series": [{"series": key, "values": values} for key, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f"round({name}, 0.001)",
                "eval_time": "15m",
                "exp_samples": [{"labels": '{namespace="web",vhost="blog"}', "value": value}],
            }
            for name, value in expected.items()
        ],
    }
    (tmp_path / "test.yaml").write_text(json.dumps({"rule_files": [str(RULES)], "tests": [tests]}))
    done = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "test.yaml")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def expressions() -> list[str]:
    """Return what the dashboards ask, with Grafana's variables put in."""
    found = []
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            found += [target["expr"] for target in panel.get("targets", ())]
    return [text.replace("$__rate_interval", "5m").replace("$vhost", "blog") for text in found]


def test_prometheus_understands_rules_and_dashboards(tmp_path: Path) -> None:
    asked = [{"record": f"asked:number{n}", "expr": text} for n, text in enumerate(expressions())]
    assert len(asked) > 40
    (tmp_path / "asked.yaml").write_text(json.dumps({"groups": [{"name": "asked", "rules": asked}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", str(RULES), str(tmp_path / "asked.yaml")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_that_is_asked_for_exists() -> None:
    """The roles' READMEs list their metrics, which other tests hold to the code."""
    documented: set[str] = set()
    for path in TOP.glob("services/*/README.md"):
        documented |= set(re.findall(r"`(pyttpd_[a-z_]+)", path.read_text()))
    asked = set()
    for text in [*expressions(), *(rule["expr"] for rule in rules())]:
        asked |= set(re.findall(r"\b(?<!:)pyttpd_[a-z_]+(?![a-z_]*:)", text))
    assert {name.removesuffix("_bucket") for name in asked} <= documented


def test_dashboards_are_whole() -> None:
    assert [path.name for path in DASHBOARDS] == ["tenant.json", "tree.json"]
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        panels = dashboard["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        places = {
            (x, y)
            for panel in panels
            for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
            for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
        }
        area = sum(panel["gridPos"]["w"] * panel["gridPos"]["h"] for panel in panels)
        assert len(places) == area, "panels lie over each other"
        assert max(x for x, _ in places) < 24


def test_what_to_do_about_each_alert_is_written_down() -> None:
    text = (TOP / "docs/operating.md").read_text()
    assert [rule["alert"] for rule in rules() if "alert" in rule and f"`{rule['alert']}`" not in text] == []
