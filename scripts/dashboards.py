"""Grafana's dashboards, made from a table of panels: `make chart` writes them to k8s/pyttpd/files/dashboards.

A panel is a row of the table: its title, its unit, what it asks (expression and legend), where it differs from others.
Only metrics that a role's README lists (tests/chart/test_rules.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
#: A panel's size in Grafana's grid, which is 24 wide.
WIDTH, HEIGHT = 8, 7
VHOST = 'vhost=~"$vhost"'


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel; `asks` are pairs of an expression and what its series are called."""

    title: str
    unit: str
    asks: tuple[tuple[str, str], ...]
    text: str = ""
    kind: str = "timeseries"
    stacked: bool = False
    at_most: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a title."""

    title: str
    panels: tuple[Panel, ...]


def rate(metric: str, selector: str = "", by: str = "vhost") -> str:
    return f"sum by ({by}) (rate({metric}{{{selector}}}[$__rate_interval]))"


def total(metric: str, selector: str = "", by: str = "vhost") -> str:
    return f"sum by ({by}) ({metric}{{{selector}}})"


def quantiles(histogram: str, *which: float, selector: str = "") -> tuple[tuple[str, str], ...]:
    inside = f"sum by (le) (rate({histogram}_bucket{{{selector}}}[$__rate_interval]))"
    return tuple((f"histogram_quantile({q}, {inside})", str(q)) for q in which)


#: Of all tenants' requests, those that failed.
FAILED = rate("pyttpd_vhost_requests_total", 'code="5xx"', by="")
ALL = rate("pyttpd_vhost_requests_total", by="")
#: What a thread spends on one request.
BUSY = rate("pyttpd_vhost_busy_seconds_total", VHOST)
EACH = rate("pyttpd_vhost_requests_total", VHOST)

TREE = (
    Row(
        "At a glance",
        (
            Panel(
                "Requests",
                "reqps",
                (("sum(rate(pyttpd_vhost_requests_total[$__rate_interval]))", "requests"),),
                kind="stat",
            ),
            Panel(
                "Answered with 5xx",
                "percentunit",
                (
                    (
                        f"{FAILED} / {ALL}",
                        "failed",
                    ),
                ),
                kind="stat",
            ),
            Panel(
                "Applications that don't run",
                "none",
                (("sum(pyttpd_umaster_failing)", "failing"),),
                kind="stat",
            ),
        ),
    ),
    Row(
        "Tenants",
        (
            Panel("Requests by tenant", "reqps", ((rate("pyttpd_vhost_requests_total"), "{{vhost}}"),)),
            Panel(
                "Refused by tenant",
                "reqps",
                ((rate("pyttpd_umaster_refusals_total", by="vhost, reason"), "{{vhost}} {{reason}}"),),
                "Before a worker had them: 421 for names that nobody has, 503 for queues that are full or too old.",
            ),
            Panel(
                "Busy threads by tenant",
                "percentunit",
                ((f"{total('pyttpd_vhost_busy_threads')} / {total('pyttpd_vhost_threads')}", "{{vhost}}"),),
                at_most=1,
            ),
            Panel("Waiting for a worker", "none", ((total("pyttpd_umaster_queue_depth"), "{{vhost}}"),)),
            Panel(
                "Memory of workers",
                "bytes",
                ((total("pyttpd_vhost_worker_memory_bytes"), "{{vhost}}"),),
                stacked=True,
            ),
            Panel("Sent", "Bps", ((rate("pyttpd_vhost_bytes_sent_total"), "{{vhost}}"),), stacked=True),
        ),
    ),
    Row(
        "Listeners and umaster",
        (
            Panel(
                "Connections accepted",
                "cps",
                ((rate("pyttpd_listener_accepted_total", by="instance"), "{{instance}}"),),
            ),
            Panel(
                "Connections of the listeners",
                "none",
                ((total("pyttpd_listener_connections", by="state"), "{{state}}"),),
                "Those that a listener answers for: no worker has taken them yet.",
                stacked=True,
            ),
            Panel(
                "Answers of the listeners",
                "reqps",
                ((rate("pyttpd_listener_answers_total", by="status"), "{{status}}"),),
            ),
            Panel(
                "From the offer to the worker",
                "s",
                quantiles("pyttpd_umaster_queue_wait_seconds", 0.5, 0.9, 0.99),
            ),
            Panel(
                "Accept queues",
                "percentunit",
                (("pyttpd_init_accept_queue_depth / (pyttpd_init_accept_queue_limit > 0)", "{{listener}}"),),
                at_most=1,
            ),
            Panel(
                "Listeners that are here",
                "none",
                ((total("pyttpd_umaster_listeners", by="listener"), "{{listener}}"),),
            ),
        ),
    ),
    Row(
        "Roles",
        (
            Panel(
                "Processor",
                "percentunit",
                tuple(
                    (
                        f"sum by (instance) (rate(pyttpd_{role}_cpu_seconds[$__rate_interval]))",
                        f"{role} {{{{instance}}}}",
                    )
                    for role in ("init", "master", "umaster", "listener")
                ),
            ),
            Panel(
                "Descriptors",
                "percentunit",
                tuple(
                    (
                        f"pyttpd_{role}_open_descriptors / pyttpd_{role}_descriptors_limit",
                        f"{role} {{{{instance}}}}",
                    )
                    for role in ("umaster", "listener")
                ),
                at_most=1,
            ),
            Panel(
                "Channels closed for what a peer did",
                "none",
                tuple(
                    (
                        f"sum by (peer, reason) (increase(pyttpd_{role}_channel_faults_total[$__rate_interval]))",
                        f"{role}: {{{{peer}}}} {{{{reason}}}}",
                    )
                    for role in ("init", "master", "umaster", "listener", "vhost")
                ),
            ),
        ),
    ),
)

TENANT = (
    Row(
        "Requests",
        (
            Panel(
                "Requests by status",
                "reqps",
                ((rate("pyttpd_vhost_requests_total", VHOST, by="code"), "{{code}}"),),
                stacked=True,
            ),
            Panel(
                "Time per request",
                "s",
                (
                    (
                        f"{BUSY} / {EACH}",
                        "{{vhost}}",
                    ),
                ),
                "The mean of what a thread spends on one.",
            ),
            Panel(
                "Faults of the application",
                "reqps",
                (
                    (rate("pyttpd_vhost_errors_total", VHOST), "exceptions"),
                    (rate("pyttpd_vhost_slow_requests_total", VHOST), "slow"),
                    (rate("pyttpd_vhost_request_timeouts_total", VHOST), "timed out"),
                    (rate("pyttpd_vhost_backend_errors_total", VHOST, by="reason"), "{{reason}}"),
                ),
            ),
        ),
    ),
    Row(
        "Waiting",
        (
            Panel(
                "From the offer to the worker",
                "s",
                quantiles("pyttpd_umaster_queue_wait_seconds", 0.5, 0.9, 0.99, selector=VHOST),
            ),
            Panel(
                "Queue",
                "none",
                (
                    (total("pyttpd_umaster_queue_depth", VHOST), "waiting"),
                    (total("pyttpd_umaster_credits", VHOST), "room"),
                ),
            ),
            Panel(
                "Refused",
                "reqps",
                ((rate("pyttpd_umaster_refusals_total", VHOST, by="reason"), "{{reason}}"),),
            ),
        ),
    ),
    Row(
        "Workers",
        (
            Panel(
                "Workers",
                "none",
                (
                    (total("pyttpd_vhost_workers", VHOST, by="state"), "{{state}}"),
                    (total("pyttpd_vhost_pool_size", VHOST), "wanted"),
                ),
            ),
            Panel(
                "Threads",
                "none",
                (
                    (total("pyttpd_vhost_busy_threads", VHOST), "busy"),
                    (total("pyttpd_vhost_threads", VHOST), "all"),
                ),
            ),
            Panel(
                "Workers that ended",
                "none",
                (
                    (
                        f"sum by (reason) (increase(pyttpd_vhost_worker_exits_total{{{VHOST}}}[$__rate_interval]))",
                        "{{reason}}",
                    ),
                ),
            ),
            Panel("Memory", "bytes", ((total("pyttpd_vhost_worker_memory_bytes", VHOST), "{{vhost}}"),)),
            Panel("Connections", "none", ((total("pyttpd_vhost_connections", VHOST), "{{vhost}}"),)),
            Panel(
                "Until a new worker serves",
                "s",
                quantiles("pyttpd_vhost_worker_spawn_seconds", 0.5, 0.9, selector=VHOST),
            ),
        ),
    ),
)


def variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
        "sort": 1,
    }


def panel(one: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    custom: dict[str, Any] = {"fillOpacity": 10, "showPoints": "never"}
    if one.stacked:
        custom |= {"stacking": {"mode": "normal"}, "fillOpacity": 30}
    defaults: dict[str, Any] = {"unit": one.unit, "min": 0}
    if one.at_most is not None:
        defaults["max"] = one.at_most
    if one.kind == "timeseries":
        defaults["custom"] = custom
    return {
        "id": number,
        "title": one.title,
        "type": one.kind,
        "description": one.text,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
            for place, (expression, legend) in enumerate(one.asks)
        ],
    }


def dashboard(uid: str, title: str, rows: tuple[Row, ...], variables: tuple[dict[str, Any], ...]) -> str:
    """Return a dashboard as Grafana's JSON."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        place = {"x": 0, "y": y, "w": 24, "h": 1}
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "gridPos": place,
                "panels": [],
            }
        )
        y += 1
        for index, one in enumerate(row.panels):
            across = 24 // WIDTH
            panels.append(panel(one, len(panels) + 1, index % across * WIDTH, y + index // across * HEIGHT))
        y += -(-len(row.panels) // (24 // WIDTH)) * HEIGHT
    return (
        json.dumps(
            {
                "uid": uid,
                "title": title,
                "tags": ["pyttpd"],
                "editable": True,
                "schemaVersion": 39,
                "version": 1,
                "refresh": "30s",
                "time": {"from": "now-3h", "to": "now"},
                "templating": {
                    "list": [
                        {
                            "name": "datasource",
                            "label": "Prometheus",
                            "type": "datasource",
                            "query": "prometheus",
                        },
                        *variables,
                    ]
                },
                "annotations": {"list": []},
                "panels": panels,
            },
            indent=1,
        )
        + "\n"
    )


def dashboards() -> dict[str, str]:
    """Return every dashboard by the name of its file."""
    vhosts = variable("vhost", "label_values(pyttpd_umaster_workers, vhost)")
    return {
        "tree.json": dashboard("pyttpd-tree", "pyttpd: the tree", TREE, ()),
        "tenant.json": dashboard("pyttpd-tenant", "pyttpd: a tenant", TENANT, (vhosts,)),
    }
