"""The Pod Security Standards' *restricted* profile, rule by rule, as the documentation of Kubernetes has it.

Every control of *baseline* and of *restricted*. Each rule is a function of a pod's spec that yields what is wrong; no
rule knows our chart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Spec = dict[str, Any]
Finding = str

#: Baseline: "safe" sysctls.
SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
}
#: Restricted: volume types; `image` volumes are let through by the admission controller (it checks what it forbids).
VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret", "image",
}  # fmt: skip
SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}


def containers(spec: Spec) -> Iterator[tuple[str, Spec]]:
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for one in spec.get(kind) or ():
            yield one["name"], one


def _context(container: Spec) -> Spec:
    found: Spec = container.get("securityContext") or {}
    return found


def _pod_context(spec: Spec) -> Spec:
    found: Spec = spec.get("securityContext") or {}
    return found


# ---- baseline ----


def host_process(spec: Spec) -> Iterator[Finding]:
    for name, context in (("pod", _pod_context(spec)), *((n, _context(c)) for n, c in containers(spec))):
        if (context.get("windowsOptions") or {}).get("hostProcess"):
            yield f"{name}: hostProcess"


def host_namespaces(spec: Spec) -> Iterator[Finding]:
    yield from (key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key))


def privileged(spec: Spec) -> Iterator[Finding]:
    yield from (f"{name}: privileged" for name, one in containers(spec) if _context(one).get("privileged"))


def host_paths(spec: Spec) -> Iterator[Finding]:
    yield from (f"{each['name']}: hostPath" for each in spec.get("volumes") or () if "hostPath" in each)


def host_ports(spec: Spec) -> Iterator[Finding]:
    for name, one in containers(spec):
        for port in one.get("ports") or ():
            if port.get("hostPort"):
                yield f"{name}: hostPort {port['hostPort']}"


def host_probes(spec: Spec) -> Iterator[Finding]:
    for name, one in containers(spec):
        handlers = [one.get(f"{kind}Probe") or {} for kind in ("liveness", "readiness", "startup")]
        handlers += [(one.get("lifecycle") or {}).get(kind) or {} for kind in ("postStart", "preStop")]
        if any((each.get(how) or {}).get("host") for each in handlers for how in ("httpGet", "tcpSocket")):
            yield f"{name}: a probe of another host"


def app_armor(spec: Spec) -> Iterator[Finding]:
    for name, context in (("pod", _pod_context(spec)), *((n, _context(c)) for n, c in containers(spec))):
        if (context.get("appArmorProfile") or {}).get("type", "RuntimeDefault") not in (
            "RuntimeDefault",
            "Localhost",
        ):
            yield f"{name}: AppArmor"


def selinux(spec: Spec) -> Iterator[Finding]:
    for name, context in (("pod", _pod_context(spec)), *((n, _context(c)) for n, c in containers(spec))):
        options = context.get("seLinuxOptions") or {}
        if options.get("type", "") not in SELINUX_TYPES or options.get("user") or options.get("role"):
            yield f"{name}: SELinux options"


def proc_mount(spec: Spec) -> Iterator[Finding]:
    for name, one in containers(spec):
        if _context(one).get("procMount", "Default") != "Default":
            yield f"{name}: procMount"


def sysctls(spec: Spec) -> Iterator[Finding]:
    for each in _pod_context(spec).get("sysctls") or ():
        if each["name"] not in SYSCTLS:
            yield f"sysctl {each['name']}"


# ---- restricted ----


def volume_types(spec: Spec) -> Iterator[Finding]:
    for each in spec.get("volumes") or ():
        kinds = set(each) - {"name"}
        if len(kinds) != 1 or not kinds <= VOLUMES:
            yield f"volume {each['name']}: {sorted(kinds)}"


def privilege_escalation(spec: Spec) -> Iterator[Finding]:
    for name, one in containers(spec):
        if _context(one).get("allowPrivilegeEscalation") is not False:
            yield f"{name}: allowPrivilegeEscalation isn't false"


def non_root(spec: Spec) -> Iterator[Finding]:
    pod = _pod_context(spec).get("runAsNonRoot")
    for name, one in containers(spec):
        if _context(one).get("runAsNonRoot", pod) is not True:
            yield f"{name}: runAsNonRoot isn't true"
    if pod is False:
        yield "pod: runAsNonRoot is false"


def non_root_user(spec: Spec) -> Iterator[Finding]:
    for name, context in (("pod", _pod_context(spec)), *((n, _context(c)) for n, c in containers(spec))):
        if context.get("runAsUser") == 0:
            yield f"{name}: runAsUser is 0"


def seccomp(spec: Spec) -> Iterator[Finding]:
    pod = (_pod_context(spec).get("seccompProfile") or {}).get("type")
    for name, one in containers(spec):
        kind = (_context(one).get("seccompProfile") or {}).get("type", pod)
        if kind not in ("RuntimeDefault", "Localhost"):
            yield f"{name}: seccomp profile {kind}"


def capabilities(spec: Spec) -> Iterator[Finding]:
    for name, one in containers(spec):
        found = _context(one).get("capabilities") or {}
        if "ALL" not in (found.get("drop") or ()):
            yield f"{name}: doesn't drop ALL"
        if more := set(found.get("add") or ()) - {"NET_BIND_SERVICE"}:
            yield f"{name}: adds {sorted(more)}"


BASELINE: tuple[Callable[[Spec], Iterator[Finding]], ...] = (
    host_process, host_namespaces, privileged, host_paths, host_ports, host_probes, app_armor, selinux, proc_mount,
    sysctls,
)  # fmt: skip
RESTRICTED = (
    *BASELINE,
    volume_types,
    privilege_escalation,
    non_root,
    non_root_user,
    seccomp,
    capabilities,
)


def evaluate(spec: Spec) -> list[Finding]:
    """Return all that the restricted profile finds wrong with a pod."""
    return [f"{rule.__name__}: {finding}" for rule in RESTRICTED for finding in rule(spec)]
