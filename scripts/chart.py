"""Write what is made from the chart: `make chart`.

    python -m scripts.chart           write it
    python -m scripts.chart --check   say what isn't in step; the exit status is 1 then

- k8s/pyttpd/values.schema.json: what this file says of Kubernetes' part, and the configuration's own schema
  (pyttpd.config.json_schema) of what the chart hands through. Only what draft 7 knows, for Helm 3.
- k8s/pyttpd/README.md: the table of values, from the comments in values.yaml ("# -- text" above a key).
- k8s/pyttpd/files/dashboards: Grafana's, from scripts/dashboards.py.
- k8s/base: the chart, rendered with k8s/base.values.yaml, for `kubectl apply -k`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from scripts.dashboards import dashboards

from pyttpd.config.json_schema import json_schema

TOP = Path(__file__).resolve().parent.parent
CHART = TOP / "k8s/pyttpd"
BASE = TOP / "k8s/base"
BASE_VALUES = TOP / "k8s/base.values.yaml"
#: Release and namespace of the plain manifests.
NAME = "pyttpd"
BEGIN, END = "<!-- values:begin -->", "<!-- values:end -->"

# --- values.schema.json -----------------------------------------------------------------------------------------------

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
ANY_OBJECT: Schema = {"type": "object"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
OBJECTS: Schema = {"type": "array", "items": ANY_OBJECT}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
#: What Kubernetes calls a quantity, and what YAML makes of `1`.
QUANTITY: Schema = {
    "anyOf": [{"type": "string", "pattern": r"^[0-9.]+([eE][+-]?[0-9]+|[mkKMGTPE]i?)?$"}, {"type": "number"}]
}
QUANTITIES: Schema = {"type": "object", "additionalProperties": QUANTITY}
INT_OR_PERCENT: Schema = {
    "anyOf": [
        {"type": "integer", "minimum": 0},
        {"type": "string", "pattern": "^[0-9]+%?$"},
        {"type": "null"},
    ]
}
#: A volume's source in a tenant's list. hostPath isn't one of them: the restricted standard forbids it.
SOURCES = (
    "configMap",
    "secret",
    "persistentVolumeClaim",
    "image",
    "emptyDir",
    "projected",
    "csi",
    "ephemeral",
)
SYSTEM = 'Not for tenants: see "A tenant with an entry point of its own" in docs/kubernetes.md.'


def whole(low: int, high: int = 2**31 - 1) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def table(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def one_of(*words: str) -> Schema:
    return {"enum": list(words)}


def nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def with_extra(schema: Schema, **properties: Schema) -> Schema:
    """Return the configuration's schema of a table with keys of the chart's; defaults are put under it later."""
    return {
        "type": ["object", "null"],  # null takes out what another file of values has put in
        "properties": schema["properties"] | properties,
        "additionalProperties": False,
    }


def values_schema() -> Schema:
    """Return the schema of the values."""
    configuration = json_schema()["properties"]
    (listen,) = configuration["listen"]["patternProperties"].values()
    (vhost,) = configuration["vhost"]["patternProperties"].values()
    resources = table(requests=QUANTITIES, limits=QUANTITIES, claims=OBJECTS)
    probe = table(
        initialDelaySeconds=whole(0), periodSeconds=whole(1), timeoutSeconds=whole(1), failureThreshold=whole(1),
        successThreshold=whole(1), terminationGracePeriodSeconds=whole(1),
    )  # fmt: skip
    image = table(
        registry=TEXT, repository=TEXT, tag=TEXT, pullPolicy=one_of("Always", "IfNotPresent", "Never"),
        digest={"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
    )  # fmt: skip
    volume = table(
        name={"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,26}[a-z0-9])?$"},
        mountPath={"type": "string", "pattern": "^/"},
        subPath=TEXT,
        readOnly=FLAG,
        **dict.fromkeys(SOURCES, ANY_OBJECT),
    )
    tenant = with_extra(
        vhost,
        image=image,
        resources=resources,
        volumes={"type": "array", "items": volume | {"required": ["name", "mountPath"]}},
        tmp=table(sizeLimit=QUANTITY),
        sharedMemory=table(sizeLimit=QUANTITY),
        required=FLAG,
        command={"type": "array", "items": TEXT, "description": SYSTEM},
        args={"description": SYSTEM},
        entrypoint={"description": SYSTEM},
    )
    listener = with_extra(
        listen,
        service=table(enabled=FLAG, port=nullable(PORT), nodePort=nullable(PORT)),
        hostPort=nullable(PORT),
        resources=resources,
    )
    # The kernel's words stay Kubernetes': what isn't looked into here the cluster looks into.
    monitor = table(
        enabled=FLAG, namespace=TEXT, labels=TEXTS, interval=TEXT, scrapeTimeout=TEXT, relabelings=OBJECTS,
        metricRelabelings=OBJECTS,
    )  # fmt: skip
    handed_on = {
        key: value
        for key, value in configuration.items()
        if key not in ("listen", "vhost", "metrics", "include", "runtime_dir")
    }
    schema = table(
        nameOverride=TEXT,
        fullnameOverride=TEXT,
        commonLabels=TEXTS,
        extraObjects={"type": "array", "items": {"anyOf": [ANY_OBJECT, TEXT]}},
        kind=one_of("Deployment", "DaemonSet"),
        replicas=whole(0),
        revisionHistoryLimit=whole(0),
        minReadySeconds=whole(0),
        updateStrategy=table(deployment=ANY_OBJECT, daemonSet=ANY_OBJECT),
        image=table(
            registry=TEXT, prefix=TEXT, tag=TEXT, pullPolicy=one_of("Always", "IfNotPresent", "Never")
        ),
        imagePullSecrets=OBJECTS,
        config={
            "type": "object",
            "properties": handed_on,
            "additionalProperties": False,
            "required": ["grace"],
        },
        listeners={"type": "object", "additionalProperties": listener},
        listenerDefaults=listener,
        tenants={"type": "object", "additionalProperties": tenant},
        tenantDefaults=tenant,
        init=table(lowPorts=one_of("sysctl", "capability", "none"), resources=resources),
        master=table(resources=resources),
        umaster=table(resources=resources),
        drain=table(delaySeconds=whole(0, 3600)),
        probes=table(
            startup=probe,
            readiness=probe,
            liveness=probe,
            tenants=table(withinSeconds=whole(0), startup=probe),
        ),
        service=table(
            enabled=FLAG,
            type=one_of("ClusterIP", "NodePort", "LoadBalancer"),
            externalTrafficPolicy=one_of("Local", "Cluster"),
            annotations=TEXTS,
            labels=TEXTS,
            loadBalancerClass=TEXT,
            loadBalancerSourceRanges={"type": "array", "items": TEXT},
            clusterIP=TEXT,
            externalIPs={"type": "array", "items": TEXT},
            ipFamilyPolicy=one_of("", "SingleStack", "PreferDualStack", "RequireDualStack"),
            ipFamilies={"type": "array", "items": one_of("IPv4", "IPv6"), "maxItems": 2},
            sessionAffinity=one_of("", "None", "ClientIP"),
        ),
        autoscaling=table(
            enabled=FLAG,
            minReplicas=whole(1),
            maxReplicas=whole(1),
            targetCPUUtilizationPercentage=nullable(whole(1)),
            targetMemoryUtilizationPercentage=nullable(whole(1)),
            metrics=OBJECTS,
            behavior=ANY_OBJECT,
        ),
        podDisruptionBudget=table(enabled=FLAG, minAvailable=INT_OR_PERCENT, maxUnavailable=INT_OR_PERCENT),
        topologySpreadConstraints=OBJECTS,
        networkPolicy=table(enabled=FLAG, clients=OBJECTS, scrapers=OBJECTS),
        metrics=table(
            address=configuration["metrics"]["properties"]["address"],
            basePort=configuration["metrics"]["properties"]["base_port"],
            listener=table(resources=resources),
            service=table(enabled=FLAG, annotations=TEXTS),
            serviceMonitor=monitor,
            podMonitor=monitor,
            prometheusRule=table(enabled=FLAG, namespace=TEXT, labels=TEXTS),
            dashboards=table(enabled=FLAG, namespace=TEXT, labels=TEXTS, annotations=TEXTS),
        ),
        serviceAccount=table(create=FLAG, name=TEXT, annotations=TEXTS),
        hostUsers=nullable(FLAG),
        podSecurityContext=ANY_OBJECT,
        podLabels=TEXTS,
        podAnnotations=TEXTS,
        annotations=TEXTS,
        priorityClassName=TEXT,
        runtimeClassName=TEXT,
        nodeSelector=TEXTS,
        tolerations=OBJECTS,
        affinity=ANY_OBJECT,
        tests=table(enabled=FLAG, resources=resources),
    )
    # Helm puts these in by itself where the chart is somebody's dependency.
    schema["properties"]["global"] = ANY_OBJECT
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart pyttpd",
        **schema,
    }


# --- README.md --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Value:
    """One row of the table: the path of a value, its default as JSON (empty: its parts have rows), what it is."""

    path: str
    default: str
    text: str


def documented() -> list[Value]:
    """Return the rows, in the order of values.yaml. Raises ValueError for a value that no comment is about."""
    text = (CHART / "values.yaml").read_text()
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    rows = list(_rows(root, yaml.safe_load(text), text.splitlines(), ()))
    if silent := [row.path for row in rows if not row.text]:
        raise ValueError(f"values.yaml: no comment (# -- ...) above {', '.join(silent)}")
    return rows


def _comment(lines: list[str], line: int) -> str:
    """Return what the comment that ends right above `line` says after its "--"."""
    found: list[str] = []
    for above in reversed(lines[:line]):
        match = re.fullmatch(r"\s*#\s?(.*)", above)
        if not match:
            return ""
        found.insert(0, match[1])
        if found[0].startswith("-- "):
            return " ".join(found).removeprefix("-- ")
    return ""


def _rows(node: yaml.MappingNode, value: Any, lines: list[str], path: tuple[str, ...]) -> Iterator[Value]:
    for key, below in node.value:
        here = (*path, key.value)
        text = _comment(lines, key.start_mark.line)
        child = value[key.value]
        nested = isinstance(below, yaml.MappingNode) and below.value and not below.flow_style
        inner = list(_rows(below, child, lines, here)) if nested else []
        parts = bool(inner) and (not text or any(row.text for row in inner))
        if text or not parts:
            yield Value(".".join(here), "" if parts else json.dumps(child), text)
        if parts:
            yield from inner


def readme() -> str:
    """Return README.md with its table made anew."""
    text = (CHART / "README.md").read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md has no {BEGIN} ... {END}")
    lines = ["| value | default | what |", "| --- | --- | --- |"]
    for row in documented():
        default = f"`{row.default}`" if row.default else ""
        lines.append(f"| `{row.path}` | {default} | {row.text} |".replace("{{", "{ {"))
    return f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}{after}"


# --- k8s/base ---------------------------------------------------------------------------------------------------------

NAMESPACE = f"""\
apiVersion: v1
kind: Namespace
metadata:
  name: {NAME}
  labels:
    # Everything here passes, and nothing that doesn't may come.
    pod-security.kubernetes.io/enforce: restricted
"""


def base() -> dict[Path, str]:
    """Return the plain manifests: what the chart makes of k8s/base.values.yaml, less what is Helm's."""
    import helm_python

    with helm_python.Chart.load(str(CHART)) as chart:
        values = yaml.safe_load(BASE_VALUES.read_text())
        rendered = chart.render(values, name=NAME, namespace=NAME, is_install=True)
    note = "# Made from k8s/pyttpd and k8s/base.values.yaml by `make chart`; do not edit.\n"
    files = {"namespace.yaml": note + NAMESPACE}
    for path, text in sorted(rendered.items()):
        if path.endswith("NOTES.txt") or "/tests/" in path or not text.strip():
            continue
        plain = re.sub(r"(?m)^ *helm\.sh/chart: .*\n", "", text).replace(
            "managed-by: Helm", "managed-by: kustomize"
        )
        plain = re.sub(r"(?m)^\s+$\n", "", plain).strip("\n") + "\n"
        files[Path(path).name] = note + plain
    listed = "".join(f"  - {name}\n" for name in files)
    kind = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
    files["kustomization.yaml"] = f"{note}{kind}namespace: {NAME}\nresources:\n{listed}"
    return {BASE / name: text for name, text in files.items()}


# --- all of it --------------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    schema = json.dumps(values_schema(), indent=1, ensure_ascii=False) + "\n"
    checking = arguments == ["--check"]
    wrong = []

    def put(files: dict[Path, str]) -> None:
        for path, text in files.items():
            if not path.exists() or path.read_text() != text:
                wrong.append(path)
                if not checking:
                    path.parent.mkdir(exist_ok=True)
                    path.write_text(text)

    put({CHART / "values.schema.json": schema, CHART / "README.md": readme()})
    put({CHART / "files/dashboards" / name: text for name, text in dashboards().items()})
    manifests = base()
    put(manifests)
    for path in set(BASE.glob("*")) - set(manifests):
        wrong.append(path)
        if not checking:
            path.unlink()
    for path in wrong:
        print(f"{'not in step' if checking else 'written'}: {path.relative_to(TOP)}")
    return 1 if checking and wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
