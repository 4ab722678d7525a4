"""Values that are refused: by a guard, with a sentence that says what would be right, or by the schema."""

from __future__ import annotations

import pytest

from chart.cases import STATIC, TENANTS, WSGI, tenant
from support.chart import Helm, HelmError, Values

#: Places that are nobody's to cover.
SYSTEM = (
    *("/", "/run/pyttpd/vhost", "/run/health", "/etc/pyttpd", "/srv/../usr/lib/python3"),
    *("/dev/shm", "/tmp", "/proc"),
)
GUARDED: dict[str, tuple[Values, str]] = {
    "no listener": ({"listeners": {"http": None}}, "listeners: there is none"),
    "seven listeners": (
        {"listeners": {f"l{n}": {"address": f"0.0.0.0:{8000 + n}"} for n in range(7)}},
        "there are 8, and a tree has at most 6",
    ),
    "a listener called metrics": (
        {"listeners": {"metrics": {"address": "0.0.0.0:81"}}},
        "choose another one",
    ),
    "a listener with a bad name": (
        {"listeners": {"Web": {"address": "0.0.0.0:81"}}},
        "listeners.Web: a name is",
    ),
    "no address": ({"listeners": {"other": {}}}, r"listeners.other.address: an IP address and a port"),
    "one address twice": (
        {"listeners": {"other": {"address": "0.0.0.0:80"}}},
        "listeners.other.address: 0.0.0.0:80 is listeners.http's already",
    ),
    "one port twice in the Service": (
        {"listeners": {"http6": {"address": "[::]:80"}}},
        "the Service has port 80 from listeners.http already",
    ),
    "a metrics port": ({"listeners": {"http": {"address": "0.0.0.0:9101"}}}, "is the metrics port of master"),
    "one metrics port twice": (
        {"listeners": {"http": {"metrics_port": 9102}}},
        "listeners.http.metrics_port: 9102 is the metrics port of umaster already",
    ),
    "two listeners, one uid": (
        {"listeners": {"other": {"address": "0.0.0.0:81", "uid": 10010}}},
        "10010 is the uid of listeners.http already",
    ),
    "a Service without a port": (
        {"listeners": {"http": {"service": {"enabled": False}}}},
        "no listener has service.enabled",
    ),
    "one host twice": (
        {"tenants": {"a": STATIC, "b": STATIC | {"uid": 20009, "hosts": ["Static.LOCALHOST."]}}},
        "tenants.b.hosts: static.localhost is tenants.a's already; a host has one owner",
    ),
    "one host twice at one tenant": (
        tenant(hosts=["a.example", "A.example"]),
        "a.example stands there twice",
    ),
    "no host": (tenant(hosts=[]), "tenants.static.hosts: no client would find it"),
    "no uid": (
        {"tenants": {"static": {k: v for k, v in STATIC.items() if k != "uid"}}},
        "tenants.static.uid: a tenant has a uid of its own",
    ),
    "one uid twice": (
        {"tenants": {"a": STATIC, "b": WSGI | {"uid": 20001}}},
        "tenants.b.uid: 20001 is the uid of tenants.a, too",
    ),
    "one uid twice, and one of them says so": (
        {"tenants": {"a": STATIC, "b": WSGI | {"uid": 20001, "share_uid": True}}},
        "or say share_uid true for both",
    ),
    "two defaults": (
        {"tenants": {"a": STATIC | {"default": True}, "b": WSGI | {"default": True}}},
        "tenants.b.default: tenants.a is the default already",
    ),
    "a tenant with a bad name": ({"tenants": {"my_site": STATIC}}, "tenants.my_site: a name is"),
    "an entry point among others": (
        {"tenants": {**TENANTS, "wsgi": WSGI | {"command": ["/start"]}}},
        r"tenants.wsgi.command: .* can't be confined from within",
    ),
    "an entry point without a policy": (
        {**tenant(command=["/start"]), "networkPolicy": {"enabled": False}},
        "can't be confined from within",
    ),
    "an entry point by another name": (tenant(entrypoint=["/start"]), "tenants.static.entrypoint: "),
    "arguments": (tenant(args=["--debug"]), "tenants.static.args: "),
    "two volumes at one place": (
        tenant(
            volumes=[
                {"name": name, "mountPath": path, "configMap": {"name": "x"}}
                for name, path in (("a", "/srv/a"), ("b", "/srv/./a/"))
            ]
        ),
        "two of them are mounted at /srv/a",
    ),
    "two volumes with one name": (
        tenant(
            volumes=[{"name": "a", "mountPath": p, "configMap": {"name": "x"}} for p in ("/srv/a", "/srv/b")]
        ),
        "two of them are called a",
    ),
    "a volume without a source": (
        tenant(volumes=[{"name": "a", "mountPath": "/srv/a"}]),
        "a needs one source, such as configMap or persistentVolumeClaim; it has 0",
    ),
    "a DaemonSet that scales": (
        {"kind": "DaemonSet", "autoscaling": {"enabled": True}},
        "a DaemonSet has one pod on each node",
    ),
    "more pods than there may be": (
        {"autoscaling": {"enabled": True, "minReplicas": 11}},
        "autoscaling.minReplicas: 11 is more than maxReplicas, 10",
    ),
    "no budget": ({"podDisruptionBudget": {"maxUnavailable": None}}, "give minAvailable or maxUnavailable"),
    "a low port that nobody may bind": ({"init": {"lowPorts": "none"}}, "one is on 80; use sysctl"),
    "two monitors": (
        {"metrics": {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}},
        "would scrape everything twice",
    ),
}
GUARDED |= {
    f"a volume at {path}": (
        tenant(volumes=[{"name": "a", "mountPath": path, "configMap": {"name": "x"}}]),
        "this place is the system's or pyttpd's own",
    )
    for path in SYSTEM
}

#: A key that doesn't exist, or a value that can't be, at every depth: (values, what the message must name).
MISTYPED: dict[str, tuple[Values, str]] = {
    "a key that nobody knows": ({"replcas": 3}, "replcas"),
    "a number that is a text": ({"replicas": "three"}, "replicas"),
    "a kind that is none": ({"kind": "StatefulSet"}, "kind"),
    "a key of a listener's": ({"listeners": {"http": {"max_conections": 5}}}, "max_conections"),
    "a key of a tenant's": (tenant(aplication="a:b"), "aplication"),
    "a kind of tenant that is none": (tenant(kind="php"), "kind"),
    "a key of a pool's": (tenant(pool={"max_worker": 5}), "max_worker"),
    "a pool that is too large": (tenant(pool={"max_workers": 10**9}), "max_workers"),
    "a uid of a role's": (tenant(uid=10001), "uid"),
    "a port that is none": ({"listeners": {"http": {"service": {"port": 70000}}}}, "port"),
    "an address without a port": ({"listeners": {"http": {"address": "0.0.0.0"}}}, "address"),
    "a quantity that is none": (tenant(resources={"limits": {"memory": "much"}}), "memory"),
    "resources that are none": (tenant(resources={"memory": "1Gi"}), "memory"),
    "a folder of the node's": (
        tenant(volumes=[{"name": "a", "mountPath": "/srv/a", "hostPath": {"path": "/"}}]),
        "hostPath",
    ),
    "a service type that is none": ({"service": {"type": "Loadbalancer"}}, "type"),
    "hosts that are a text": (tenant(hosts="a.example"), "hosts"),
    "a key of the configuration's": ({"config": {"garce": 5}}, "garce"),
    "a way to low ports that is none": ({"init": {"lowPorts": "root"}}, "lowPorts"),
    "metrics of nobody": ({"metrics": {"serviceMonitr": {"enabled": True}}}, "serviceMonitr"),
}


@pytest.mark.parametrize("case", GUARDED)
def test_a_guard_says_what_would_be_right(helm: Helm, case: str) -> None:
    values, sentence = GUARDED[case]
    with pytest.raises(HelmError, match=sentence):
        helm.render(values)


@pytest.mark.parametrize("case", MISTYPED)
def test_the_schema_refuses_what_is_mistyped(helm: Helm, case: str) -> None:
    values, name = MISTYPED[case]
    with pytest.raises(HelmError, match=name):
        helm.ask(do="validate", values=values)
    with pytest.raises(HelmError, match=name):
        helm.render(values)


def test_an_image_volume_takes_a_kubernetes_that_has_it(helm: Helm) -> None:
    values = tenant(volumes=[{"name": "site", "mountPath": "/srv/static", "image": {"reference": "blog:1"}}])
    assert helm.lint(values, "v1.31.0") == []
    findings = helm.lint(values, "v1.30.0")
    assert findings
    assert all("site is an image, which Kubernetes v1.30.0 doesn't mount" in each for each in findings)
