"""The test's own rules of the restricted standard find what they are for: each is broken once."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from support import podsecurity
from support.podsecurity import RESTRICTED, Spec, evaluate

GOOD: Spec = {
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "initContainers": [
        {
            "name": "i",
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
    ],
    "containers": [
        {
            "name": "c",
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
            },
        }
    ],
    "volumes": [{"name": "v", "emptyDir": {}}],
}
#: Rule, where in the spec (a path), and what is put there.
BROKEN: list[tuple[str, tuple[str | int, ...], Any]] = [
    ("host_process", ("securityContext", "windowsOptions"), {"hostProcess": True}),
    ("host_namespaces", ("hostPID",), True),
    ("host_namespaces", ("hostNetwork",), True),
    ("privileged", ("initContainers", 0, "securityContext", "privileged"), True),
    ("host_paths", ("volumes", 0, "hostPath"), {"path": "/"}),
    ("host_ports", ("containers", 0, "ports"), [{"containerPort": 80, "hostPort": 80}]),
    ("host_probes", ("containers", 0, "livenessProbe"), {"httpGet": {"host": "192.0.2.1", "port": 80}}),
    ("app_armor", ("securityContext", "appArmorProfile"), {"type": "Unconfined"}),
    ("selinux", ("containers", 0, "securityContext", "seLinuxOptions"), {"type": "spc_t"}),
    ("proc_mount", ("containers", 0, "securityContext", "procMount"), "Unmasked"),
    ("sysctls", ("securityContext", "sysctls"), [{"name": "net.core.somaxconn", "value": "4096"}]),
    ("volume_types", ("volumes", 0), {"name": "v", "nfs": {"server": "a", "path": "/"}}),
    ("privilege_escalation", ("containers", 0, "securityContext", "allowPrivilegeEscalation"), True),
    ("privilege_escalation", ("initContainers", 0, "securityContext", "allowPrivilegeEscalation"), None),
    ("non_root", ("securityContext", "runAsNonRoot"), None),
    ("non_root", ("containers", 0, "securityContext", "runAsNonRoot"), False),
    ("non_root_user", ("initContainers", 0, "securityContext", "runAsUser"), 0),
    ("seccomp", ("securityContext", "seccompProfile"), None),
    ("seccomp", ("containers", 0, "securityContext", "seccompProfile"), {"type": "Unconfined"}),
    ("capabilities", ("containers", 0, "securityContext", "capabilities"), {"drop": ["CHOWN"]}),
    (
        "capabilities",
        ("containers", 0, "securityContext", "capabilities"),
        {"drop": ["ALL"], "add": ["NET_ADMIN"]},
    ),
]


def test_a_good_pod_passes() -> None:
    assert evaluate(GOOD) == []


@pytest.mark.parametrize(("rule", "path", "value"), BROKEN)
def test_each_rule_finds_what_it_is_for(rule: str, path: tuple[str | int, ...], value: Any) -> None:
    spec = copy.deepcopy(GOOD)
    *way, last = path
    place: Any = spec
    for step in way:
        place = place[step]
    place[last] = value
    assert {finding.partition(":")[0] for finding in evaluate(spec)} >= {rule}


def test_every_rule_is_broken_once() -> None:
    assert {rule for rule, _, _ in BROKEN} == {rule.__name__ for rule in RESTRICTED}
    assert set(podsecurity.BASELINE) < set(RESTRICTED)
