"""What is made from the chart is in step with it, and says what it should."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

from chart.cases import VALUES
from support import podsecurity
from support.chart import CHART, Helm
from support.images import TOP

BASE = TOP / "k8s/base"


def test_schema_documentation_and_plain_manifests_are_made_of_the_chart(helm: Helm) -> None:
    assert helm.process.poll() is None
    done = subprocess.run(
        [sys.executable, "-m", "scripts.chart", "--check"],
        cwd=TOP,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, ""), f"run `make chart`:\n{done.stdout}{done.stderr}"


def test_the_schema_is_one_that_helm_3_knows() -> None:
    """Helm 3's validator knows draft 7 at most."""
    text = (CHART / "values.schema.json").read_text()
    schema = json.loads(text)
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    for newer in (
        "$defs",
        "prefixItems",
        "dependentRequired",
        "unevaluatedProperties",
        "$dynamicRef",
        "minContains",
    ):
        assert f'"{newer}"' not in text


def test_every_value_is_in_the_schema(helm: Helm) -> None:
    """And every default is valid; a value that the schema doesn't know would be refused."""
    helm.ask(do="validate", values=yaml.safe_load((CHART / "values.yaml").read_text()))


@pytest.mark.parametrize("case", VALUES)
def test_values_of_many_kinds_are_valid(helm: Helm, case: str) -> None:
    helm.ask(do="validate", values=VALUES[case])


def test_the_plain_manifests_are_complete_and_restricted() -> None:
    listed = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    assert sorted([*listed, "kustomization.yaml"]) == sorted(path.name for path in BASE.iterdir())
    objects = {one["kind"]: one for name in listed for one in yaml.safe_load_all((BASE / name).read_text())}
    assert set(objects) >= {
        "Namespace",
        "ConfigMap",
        "Deployment",
        "Service",
        "NetworkPolicy",
        "ServiceAccount",
    }
    namespace = objects["Namespace"]["metadata"]
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert podsecurity.evaluate(objects["Deployment"]["spec"]["template"]["spec"]) == []
    assert all(
        one["metadata"].get("namespace", namespace["name"]) == namespace["name"] for one in objects.values()
    )


def test_the_chart_is_packaged_with_what_it_needs() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = (TOP / "src/pyttpd/__init__.py").read_text()
    assert f'"{chart["appVersion"]}"' in version
    assert chart["apiVersion"] == "v2"  # Helm 3 and 4
