"""Whatever the values: Kubernetes takes the objects, the restricted standard too, and pyttpd the configuration."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import kubernetes_validate
import pytest
from kubernetes_validate.utils import all_versions

from pyttpd.roles import METRICS_LISTENER, METRICS_LISTENER_UID, ROLES, UNPRIVILEGED_INIT_UID, Channel, Role

from chart.cases import NEWER, STATIC, TENANTS, UNRESTRICTED, VALUES, WSGI
from support import podsecurity
from support.chart import Helm, Object, Release, Values

CASES = VALUES | {name: values for name, (values, _) in NEWER.items()}
OLDEST = (1, 29)
#: Nobody's schema but the Prometheus operator's own knows these.
CUSTOM = ("ServiceMonitor", "PodMonitor", "PrometheusRule")


def number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


#: Every minor version that has schemas, from the oldest that has native sidecars.
VERSIONS = sorted({".".join(v.split(".")[:2]) for v in all_versions() if number(v) >= OLDEST}, key=number)


#: Objects that many cases have in common are looked at once.
TAKEN: set[tuple[str, str]] = set()


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def release(helm: Helm, case: str) -> Release:
    return helm.render(CASES[case])


def test_lint_finds_nothing(helm: Helm, case: str) -> None:
    assert helm.lint(CASES[case], "v1.35.0") == []


def test_every_supported_kubernetes_takes_every_object(release: Release, case: str) -> None:
    first = number(NEWER[case][1]) if case in NEWER else OLDEST
    assert VERSIONS[0] == "1.29"
    for version, one in itertools.product(VERSIONS, release.objects):
        this = (version, json.dumps(one))
        if one["kind"] not in CUSTOM and number(version) >= first and this not in TAKEN:
            kubernetes_validate.validate(one, version, strict=True)
            TAKEN.add(this)


def test_every_pod_passes_the_restricted_standard(release: Release, case: str) -> None:
    for name, pod in release.pods():
        broken = {finding.partition(":")[0] for finding in podsecurity.evaluate(pod["spec"])}
        assert broken == (set() if "-test-" in name else UNRESTRICTED.get(case, set()))


def test_the_configuration_passes_the_check(release: Release, case: str, tmp_path: Path) -> None:
    config = release.config(tmp_path)
    names = set(release.containers())
    assert {f"listener-{one.name}" for one in config.listeners} <= names
    assert {f"vhost-{one.name}" for one in config.vhosts} == {n for n in names if n.startswith("vhost-")}


def test_each_container_has_the_uid_that_the_configuration_says(
    release: Release, case: str, tmp_path: Path
) -> None:
    uids = {name: one["securityContext"]["runAsUser"] for name, one in release.containers().items()}
    init = 0 if case == "NET_BIND_SERVICE" else UNPRIVILEGED_INIT_UID
    expected = {"init": init} | {role.value: ROLES[role].uid for role in (Role.MASTER, Role.UMASTER)}
    expected[f"listener-{METRICS_LISTENER}"] = METRICS_LISTENER_UID
    config = release.config(tmp_path)
    expected |= {f"listener-{one.name}": one.uid for one in config.listeners}
    expected |= {f"vhost-{one.name}": one.uid for one in config.vhosts}
    assert uids == expected
    for one in config.vhosts:
        assert release.containers()[f"vhost-{one.name}"]["securityContext"]["runAsGroup"] == one.gid
    assert all(one["args"][-3] == str(init) for one in release.containers().values())


def test_a_channel_is_writable_for_its_binder_alone(release: Release) -> None:
    """The map of trust, as in compose.yaml."""
    for name, container in release.containers().items():
        row = ROLES[Role(name.partition("-")[0])]
        expected = dict.fromkeys(row.connects, True) | dict.fromkeys(row.binds, False)
        found = {
            Channel(mount["mountPath"].removeprefix("/run/pyttpd/")): mount.get("readOnly", False)
            for mount in container["volumeMounts"]
            if mount["mountPath"].startswith("/run/pyttpd/")
        }
        assert found == expected, name
        for mount in container["volumeMounts"]:
            if mount["mountPath"].startswith("/run/pyttpd/"):
                assert mount["name"] == f"channel-{mount['mountPath'].rpartition('/')[2]}"


def test_what_is_written_in_memory_is_one_container_s(release: Release) -> None:
    """A volume for two is a way from one tenant to the other."""
    volumes = {volume["name"]: volume for volume in release.pod["volumes"]}
    users: dict[str, list[str]] = {name: [] for name in volumes}
    for name, container in release.containers().items():
        for mount in container["volumeMounts"]:
            users[mount["name"]].append(name)
            assert mount["name"] in volumes
        paths = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert len(paths) == len(set(paths))
    for name, by in users.items():
        assert by, f"{name} is mounted nowhere"
        if name.startswith("channel-"):
            continue
        assert len(by) == 1 or (name == "configuration" and sorted(by) == ["init", "master"]), name
    for name, volume in volumes.items():
        if name.startswith(("channel-", "health-", "tmp-", "shm-")):
            assert volume["emptyDir"]["medium"] == "Memory"
            assert volume["emptyDir"]["sizeLimit"]


def test_a_tenant_has_a_shared_memory_and_a_tmp_of_its_own(release: Release) -> None:
    for name, container in release.containers().items():
        own = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert own["/run/health"] == f"health-{name}"
        if name.startswith("vhost-"):
            tenant = name.removeprefix("vhost-")
            assert (own["/tmp"], own["/dev/shm"]) == (f"tmp-{tenant}", f"shm-{tenant}")


def test_only_init_and_master_read_the_configuration(release: Release) -> None:
    readers = {
        name
        for name, one in release.containers().items()
        if any(mount["name"] == "configuration" for mount in one["volumeMounts"])
    }
    assert readers == {"init", "master"}


def test_nobody_has_a_token(release: Release) -> None:
    for _, pod in release.pods():
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["enableServiceLinks"] is False
    for account in release.of("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_the_sidecar_is_one_and_the_others_are_none(release: Release) -> None:
    (init,) = release.pod["initContainers"]
    assert (init["name"], init["restartPolicy"]) == ("init", "Always")
    assert all("restartPolicy" not in one for one in release.pod["containers"])


def test_probes_and_the_end(release: Release, case: str) -> None:
    spec, grace = release.pod, CASES[case].get("config", {}).get("grace", 30)
    delay = CASES[case].get("drain", {}).get("delaySeconds", 10)
    waits = {}
    for name, one in release.containers().items():
        assert one["startupProbe"]["exec"]["command"][3] == "pyttpd.health"
        assert one["livenessProbe"]["exec"]["command"][-1] == "--alive"
        required = not name.startswith("vhost-") or case == "a tenant that a pod needs"
        assert ("readinessProbe" in one) is required
        assert ("--within" in one["startupProbe"]["exec"]["command"]) is not required
        hook = one.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
        waits[name] = hook
        assert ("--until-left" in hook) is (name != "init" and not name.startswith("listener-"))
        assert f"--grace {grace}" in " ".join(one["args"])
    assert waits.pop("init") == []  # the kubelet ends it last
    for hook in waits.values():
        assert hook[4:6] == ["--delay", str(delay)]
        if "--until-left" in hook:
            umaster = release.containers()["umaster"]["ports"][0]["containerPort"]
            assert hook[7] == str(umaster)
            # What waits the longest still has its own grace.
            assert spec["terminationGracePeriodSeconds"] > int(hook[9]) + grace


def test_a_tenant_is_waited_for_shorter_than_it_is_killed_for(release: Release) -> None:
    for name, one in release.containers().items():
        if name.startswith("vhost-"):
            probe = one["startupProbe"]
            within = probe["exec"]["command"][-1]
            if within.isdigit():
                assert probe["periodSeconds"] * probe["failureThreshold"] > int(within)


def test_ports_have_names_that_kubernetes_takes_and_nobody_else_has(release: Release) -> None:
    ports = [port for one in release.containers().values() for port in one.get("ports", ())]
    names = [port["name"] for port in ports]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z0-9-]{1,15}", name) for name in names)
    # A second address on one port is a port of its own to pyttpd, but not to Kubernetes.
    assert len({port["containerPort"] for port in ports}) >= len(ports) - 1


def test_selectors_find_the_pods_and_nothing_else(release: Release) -> None:
    labels = release.template["metadata"]["labels"]
    selector = release.workload["spec"]["selector"]["matchLabels"]
    assert selector.items() <= labels.items()
    for one in release.of("Service"):
        assert one["spec"]["selector"] == selector
    for kind in ("NetworkPolicy", "PodDisruptionBudget"):
        for one in release.of(kind):
            found = one["spec"].get("podSelector") or one["spec"]["selector"]
            assert found["matchLabels"] == selector
    for pod in release.of("Pod"):
        assert not selector.items() <= pod["metadata"]["labels"].items()
    for spread in release.pod.get("topologySpreadConstraints", ()):
        assert spread["labelSelector"]["matchLabels"]


def test_every_object_is_in_the_namespace_and_has_its_labels(release: Release, case: str) -> None:
    for one in release.objects:
        if one["metadata"]["name"] == "more" or one["metadata"]["name"].endswith("-text"):
            continue
        assert one["metadata"]["namespace"] in ("sites", "monitoring")
        assert {"app.kubernetes.io/name", "app.kubernetes.io/instance", "helm.sh/chart"} <= set(
            one["metadata"]["labels"]
        )
        assert CASES[case].get("commonLabels", {}).items() <= one["metadata"]["labels"].items()
        assert len(one["metadata"]["name"]) <= 63


def test_notes_say_what_to_do_next(release: Release, case: str) -> None:
    assert "rollout status" in release.notes
    tenants = any(name.startswith("vhost-") for name in release.containers())
    assert ("There is no tenant yet" in release.notes) is not tenants
    assert ("WARNING" in release.notes) is (case == "no policy")


# ---- single cases ---------------------------------------------------------------------------------------------------


def test_the_checksum_changes_with_the_configuration_and_with_nothing_else(helm: Helm) -> None:
    def checksum(values: Values) -> str:
        found: str = helm.render(values).template["metadata"]["annotations"]["checksum/configuration"]
        return found

    before = checksum({"tenants": TENANTS})
    assert checksum({"tenants": {**TENANTS, "wsgi": WSGI | {"env": {"A": "b"}}}}) != before
    assert checksum({"tenants": TENANTS, "config": {"log": {"level": "debug"}}}) != before
    assert checksum({"tenants": TENANTS, "replicas": 7, "podLabels": {"a": "b"}}) == before


def test_values_arrive_in_the_configuration_as_they_are(helm: Helm, tmp_path: Path) -> None:
    release = helm.render(CASES["every kind of value in the configuration"])
    (vhost,) = release.config(tmp_path).vhosts
    assert dict(vhost.env) == {"QUOTED": 'a "b" \\ \n \t \x7f', "KEY": "<&>", "UNICODE": "grün"}
    assert vhost.http.body_limit == 2**31
    assert vhost.http.idle_timeout == 7.5
    assert vhost.pool.max_requests == 100_000_000
    assert vhost.queue.limit == 500


def test_init_binds_low_ports_as_it_is_told(helm: Helm) -> None:
    def pod(case: str) -> tuple[Object, Object]:
        release = helm.render(CASES[case])
        return release.pod["securityContext"], release.containers()["init"]["securityContext"]

    context, init = pod("two tenants")
    assert context["sysctls"] == [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "80"}]
    assert init["capabilities"] == {"drop": ["ALL"]}
    context, init = pod("high ports")
    assert "sysctls" not in context
    context, init = pod("NET_BIND_SERVICE")
    assert "sysctls" not in context
    assert init["capabilities"] == {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}
    assert init["runAsUser"] == 0


def test_nothing_goes_out_but_what_a_tenant_is_allowed(helm: Helm) -> None:
    def egress(case: str) -> list[Object]:
        found: list[Object] = helm.render(CASES[case]).one("NetworkPolicy")["spec"]["egress"]
        return found

    assert egress("two tenants") == []
    assert egress("a database") == [
        {"to": [{"ipBlock": {"cidr": cidr}}], "ports": [{"protocol": "TCP", "port": port}]}
        for cidr, port in (("10.96.0.20/32", 5432), ("fd00::5/128", 6379))
    ]
    args = helm.render(CASES["a database"]).containers()["vhost-wsgi"]["args"]
    assert args[2:6] == ["--allow", "10.96.0.20:5432", "--allow", "[fd00::5]:6379"]


def test_only_clients_and_scrapers_come_in(helm: Helm) -> None:
    def ingress(case: str) -> list[tuple[list[int], object]]:
        rules = helm.render(CASES[case]).one("NetworkPolicy")["spec"]["ingress"]
        return [([port["port"] for port in rule["ports"]], rule.get("from")) for rule in rules]

    metrics = [9100, 9101, 9102, 9103, 9109, 9110]
    monitoring = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    assert ingress("two tenants") == [([80], None), (metrics, monitoring)]
    assert ingress("a policy for some clients") == [([80], [{"ipBlock": {"cidr": "192.0.2.0/24"}}])]


def test_addresses_of_clients_survive_the_service(helm: Helm) -> None:
    assert helm.render(CASES["two tenants"]).one("Service")["spec"]["externalTrafficPolicy"] == "Local"
    assert helm.render(CASES["listeners"]).one("Service")["spec"]["externalTrafficPolicy"] == "Local"
    spec = helm.render(CASES["a DaemonSet with host ports"]).one("Service")["spec"]
    assert "externalTrafficPolicy" not in spec  # which a ClusterIP may not have


def test_the_service_has_the_listeners_ports(helm: Helm) -> None:
    ports = helm.render(CASES["listeners"]).one("Service")["spec"]["ports"]
    assert sorted((p["port"], p["targetPort"], p.get("nodePort")) for p in ports) == [
        (80, 80, 30080),
        (81, 8080, None),
    ]


@pytest.mark.parametrize("case_name", ["a ServiceMonitor and its rules", "a PodMonitor"])
def test_everybody_is_scraped(helm: Helm, case_name: str) -> None:
    release = helm.render(CASES[case_name])
    if monitors := release.of("ServiceMonitor"):
        endpoints = monitors[0]["spec"]["endpoints"]
        service = release.one("Service", "-metrics")
        selector = monitors[0]["spec"]["selector"]["matchLabels"]
        assert selector.items() <= service["metadata"]["labels"].items()
        assert not selector.items() <= release.one("Service", "pyttpd")["metadata"]["labels"].items()
        names = {port["name"]: port["port"] for port in service["spec"]["ports"]}
        base = 9200
    else:
        (monitor,) = release.of("PodMonitor")
        endpoints = monitor["spec"]["podMetricsEndpoints"]
        names = {
            port["name"]: port["containerPort"]
            for one in release.containers().values()
            for port in one.get("ports", ())
        }
        base = 9100
    found = sorted((names[one["port"]], one["path"]) for one in endpoints)
    tenants = [(base + 10, "/metrics/static"), (base + 10, "/metrics/wsgi")]
    assert found == [(base + offset, "/metrics") for offset in (0, 1, 2, 3, 9)] + tenants
    assert len(release.of("PrometheusRule")) == len(release.of("ServiceMonitor"))


def test_there_is_a_budget_only_where_pods_are_left(helm: Helm) -> None:
    assert helm.render(CASES["one pod"]).of("PodDisruptionBudget") == []
    assert helm.render(CASES["a DaemonSet"]).of("PodDisruptionBudget") == []
    assert helm.render(CASES["two tenants"]).one("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    budget = helm.render(CASES["a budget in percent"]).one("PodDisruptionBudget")["spec"]
    assert (budget["minAvailable"], "maxUnavailable" in budget) == ("50%", False)


def test_who_scales_says_how_many(helm: Helm) -> None:
    release = helm.render(CASES["autoscaling"])
    assert "replicas" not in release.workload["spec"]
    spec = release.one("HorizontalPodAutoscaler")["spec"]
    assert spec["scaleTargetRef"]["name"] == release.workload["metadata"]["name"]
    assert [metric["type"] for metric in spec["metrics"]] == ["Resource", "Resource", "ContainerResource"]


def test_images(helm: Helm) -> None:
    images = {n: c["image"] for n, c in helm.render(CASES["everything around the pod"]).containers().items()}
    assert images["umaster"] == "registry.example:5000/web/pyttpd-umaster:1.2.3"
    assert images["vhost-wsgi"] == "registry.example:5000/web/pyttpd-vhost-wsgi:1.2.3"
    digest = "sha256:" + "0" * 64
    tenants = {
        "a": STATIC | {"image": {"repository": "mine", "digest": digest}},
        "b": WSGI | {"image": {}},
    }
    images = {n: c["image"] for n, c in helm.render({"tenants": tenants}).containers().items()}
    assert (images["vhost-a"], images["vhost-b"]) == (f"mine@{digest}", "pyttpd-vhost:0.1.0")


def test_a_volume_is_read_only_unless_it_is_said(helm: Helm) -> None:
    mounts = helm.render(CASES["volumes"]).containers()["vhost-static"]["volumeMounts"]
    found = {mount["mountPath"]: mount["readOnly"] for mount in mounts if mount["name"].startswith("of-")}
    assert found == {"/srv/static": True, "/srv/keys": True, "/srv/data": False}
