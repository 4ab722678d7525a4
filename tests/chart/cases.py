"""Values of many kinds: what every test of the rendered objects is run on."""

from __future__ import annotations

from typing import Any, Final

from support.chart import Values

STATIC: Final[Values] = {
    "image": {"repository": "pyttpd-vhost-static"},
    "hosts": ["static.localhost"],
    "uid": 20001,
    "kind": "static",
    "root": "/srv/static",
}
WSGI: Final[Values] = {
    "image": {"repository": "pyttpd-vhost-wsgi"},
    "hosts": ["wsgi.localhost", "*.wsgi.localhost"],
    "uid": 20002,
    "kind": "wsgi",
    "root": "/srv/wsgi",
    "application": "app:application",
    "writable": ["/tmp"],
}
TENANTS: Final[Values] = {"static": STATIC, "wsgi": WSGI}


def tenant(**more: Any) -> Values:
    """Return values with one tenant, which has `more` than others."""
    return {"tenants": {"static": STATIC | more}}


VALUES: Final[dict[str, Values]] = {
    "nothing": {},
    "two tenants": {"tenants": TENANTS},
    "a tenant that is default": tenant(default=True),
    "a tenant that is taken out": {"tenants": {**TENANTS, "wsgi": None}},
    "many tenants": {
        "tenants": {f"t{n}": STATIC | {"hosts": [f"t{n}.example"], "uid": 30000 + n} for n in range(40)}
    },
    "one uid, and both say so": {
        "tenants": {name: one | {"uid": 20001, "share_uid": True} for name, one in TENANTS.items()}
    },
    "every kind of value in the configuration": tenant(
        env={"QUOTED": 'a "b" \\ \n \t \x7f', "KEY": "<&>", "UNICODE": "grün"},
        error_pages={"404": "404.html"},
        access_log="json",
        http={"body_limit": 2**31, "idle_timeout": 7.5, "min_body_rate": 0},
        pool={"max_workers": 3, "max_requests": 100000000},
        queue={"limit": 500},
        static={
            "listing": True,
            "index": ["index.html", "index.htm"],
            "cache_control": {"*.{css,png}": "max-age=1"},
        },
    ),
    "defaults of all tenants": {
        "tenants": TENANTS,
        "tenantDefaults": {
            "pool": {"max_workers": 4},
            "resources": {"limits": {"memory": "1Gi", "cpu": 2}},
            "tmp": {"sizeLimit": "1Gi"},
        },
    },
    "volumes": tenant(
        volumes=[
            {"name": "site", "mountPath": "/srv/static", "configMap": {"name": "site"}},
            {
                "name": "keys",
                "mountPath": "/srv/keys",
                "secret": {"secretName": "keys", "defaultMode": 0o444},
            },
            {
                "name": "data",
                "mountPath": "/srv/data",
                "subPath": "a/b",
                "readOnly": False,
                "persistentVolumeClaim": {"claimName": "data"},
            },
        ],
        writable=["/srv/data"],
    ),
    "a tenant that a pod needs": tenant(required=True),
    "a tenant in a pod of its own": tenant(command=["/usr/bin/python3", "/srv/start.py"]),
    "a database": {
        "tenants": {
            "static": STATIC,
            "wsgi": WSGI | {"allow": ["10.96.0.20:5432", "[fd00::5]:6379"], "gid": 20500},
            "other": WSGI | {"allow": ["10.96.0.20:5432"], "uid": 20003, "hosts": ["other.localhost"]},
        }
    },
    "listeners": {
        "tenants": TENANTS,
        "listeners": {
            "http": {"backlog": 500, "service": {"nodePort": 30080}},
            "http6": {"address": "[::]:80", "service": {"enabled": False}},
            "high": {
                "address": "0.0.0.0:8080",
                "max_connections": 1000,
                "service": {"port": 81},
                "uid": 10020,
            },
        },
        "service": {"type": "NodePort", "ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4", "IPv6"]},
    },
    "high ports": {
        "listeners": {"http": {"address": "0.0.0.0:8080", "service": {"port": 80}}},
        "init": {"lowPorts": "none"},
        "tenants": TENANTS,
    },
    "NET_BIND_SERVICE": {"tenants": TENANTS, "init": {"lowPorts": "capability"}},
    "a DaemonSet": {"kind": "DaemonSet", "tenants": TENANTS, "service": {"enabled": False}},
    "a DaemonSet with host ports": {
        "kind": "DaemonSet",
        "tenants": TENANTS,
        "listeners": {"http": {"hostPort": 80}},
        "service": {"type": "ClusterIP"},
        "updateStrategy": {"daemonSet": {"rollingUpdate": {"maxUnavailable": "25%"}}},
    },
    "autoscaling": {
        "tenants": TENANTS,
        "autoscaling": {
            "enabled": True,
            "minReplicas": 3,
            "targetMemoryUtilizationPercentage": 70,
            "metrics": [
                {
                    "type": "ContainerResource",
                    "containerResource": {
                        "name": "cpu",
                        "container": "vhost-wsgi",
                        "target": {"type": "Utilization", "averageUtilization": 60},
                    },
                }
            ],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 600}},
        },
    },
    "one pod": {"tenants": TENANTS, "replicas": 1},
    "a budget in percent": {
        "tenants": TENANTS,
        "podDisruptionBudget": {"minAvailable": "50%"},
        "replicas": 4,
    },
    "a ServiceMonitor and its rules": {
        "tenants": TENANTS,
        "metrics": {
            "basePort": 9200,
            "serviceMonitor": {
                "enabled": True,
                "labels": {"release": "prometheus"},
                "namespace": "monitoring",
                "relabelings": [{"action": "labeldrop", "regex": "pod"}],
            },
            "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
            "dashboards": {"enabled": True, "annotations": {"grafana_folder": "pyttpd"}},
        },
        "networkPolicy": {"scrapers": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}]},
    },
    "a PodMonitor": {
        "tenants": TENANTS,
        "metrics": {
            "podMonitor": {
                "enabled": True,
                "interval": "15s",
                "metricRelabelings": [{"action": "drop", "sourceLabels": ["le"], "regex": "0.1"}],
            }
        },
    },
    "no policy": {"tenants": TENANTS, "networkPolicy": {"enabled": False}},
    "a policy for some clients": {
        "tenants": TENANTS,
        "networkPolicy": {"clients": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "scrapers": []},
    },
    "everything around the pod": {
        "tenants": TENANTS,
        "fullnameOverride": "a-name-that-is-much-too-long-for-what-has-to-be-appended-to-it",
        "commonLabels": {"team": "web"},
        "imagePullSecrets": [{"name": "pull"}],
        "image": {"registry": "registry.example:5000/web/", "tag": "1.2.3", "pullPolicy": "Always"},
        "podLabels": {"a": "b"},
        "podAnnotations": {"c": "d"},
        "annotations": {"e": "f"},
        "priorityClassName": "high",
        "runtimeClassName": "gvisor",
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "web", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "DoNotSchedule",
            },
            {
                "maxSkew": 2,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {"x": "y"}},
            },
        ],
        "podSecurityContext": {"fsGroup": 20002, "fsGroupChangePolicy": "OnRootMismatch"},
        "serviceAccount": {"name": "web", "annotations": {"g": "h"}},
        "service": {
            "loadBalancerClass": "example.com/lb",
            "loadBalancerSourceRanges": ["192.0.2.0/24"],
            "externalIPs": ["192.0.2.1"],
            "annotations": {"i": "j"},
            "labels": {"k": "l"},
            "sessionAffinity": "ClientIP",
            "clusterIP": "10.0.0.1",
        },
        "drain": {"delaySeconds": 3},
        "config": {"grace": 5.5, "log": {"level": "debug"}},
        "extraObjects": [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "more"},
                "data": {"of": "{{ .Release.Name }}"},
            },
            'apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ include "pyttpd.fullname" . }}-text\n',
        ],
    },
    "an account that is there": {
        "serviceAccount": {"create": False, "name": "theirs"},
        "tests": {"enabled": False},
    },
}

#: What takes a newer Kubernetes than the oldest: values, and the first version that has it.
NEWER: Final[dict[str, tuple[Values, str]]] = {
    "a site in an image": (
        tenant(volumes=[{"name": "site", "mountPath": "/srv/static", "image": {"reference": "blog:1"}}]),
        "1.31",
    ),
    "user namespaces": ({"tenants": TENANTS, "hostUsers": False}, "1.30"),
}
#: What the restricted standard refuses, and why the values' documentation says so.
UNRESTRICTED: Final = {
    "NET_BIND_SERVICE": {"non_root", "non_root_user"},
    "a DaemonSet with host ports": {"host_ports"},
}
