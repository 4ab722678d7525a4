"""The chart for a test: rendered by Helm itself, looked at as objects, its configuration loaded as pyttpd loads it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from pyttpd.config.loader import load
from pyttpd.config.model import Config

from support.images import TOP

CHART = TOP / "k8s/pyttpd"
Values = dict[str, Any]
Object = dict[str, Any]


class HelmError(Exception):
    """Helm, its schema check or a guard of the chart has refused the values; the text is what a user sees."""


@dataclass(slots=True)
class Release:
    """What Helm would give to the cluster, and NOTES.txt."""

    objects: list[Object]
    notes: str

    def of(self, kind: str) -> list[Object]:
        return [one for one in self.objects if one["kind"] == kind]

    def one(self, kind: str, suffix: str = "") -> Object:
        (found,) = (one for one in self.of(kind) if one["metadata"]["name"].endswith(suffix))
        return found

    @property
    def workload(self) -> Object:
        (found,) = (one for one in self.objects if one["kind"] in ("Deployment", "DaemonSet"))
        return found

    @property
    def template(self) -> Object:
        found: Object = self.workload["spec"]["template"]
        return found

    @property
    def pod(self) -> Object:
        """The pod's spec."""
        found: Object = self.template["spec"]
        return found

    def containers(self) -> dict[str, Object]:
        """Return all containers of the pod by name, the sidecar first."""
        return {one["name"]: one for one in (*self.pod["initContainers"], *self.pod["containers"])}

    @property
    def configuration(self) -> str:
        (found,) = (one for one in self.of("ConfigMap") if "pyttpd.toml" in one.get("data", ()))
        text: str = found["data"]["pyttpd.toml"]
        return text

    def config(self, folder: Path) -> Config:
        """Return the configuration as pyttpd loads it, which is what `pyttpd check` does. Raises its errors."""
        file = folder / "pyttpd.toml"
        file.write_text(self.configuration)
        return load(str(file))

    def pods(self) -> list[tuple[str, Object]]:
        """Return name, and metadata and spec, of everything that makes a pod."""
        found = [(one["metadata"]["name"], one) for one in self.of("Pod")]
        return [*found, (self.workload["metadata"]["name"], self.template)]


@dataclass(slots=True)
class Helm:
    """Helm, in a process of its own."""

    process: subprocess.Popen[str] = field(init=False)

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [sys.executable, str(TOP / "tests/support/helm_worker.py"), str(CHART)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        with self.process:
            assert self.process.stdin is not None
            self.process.stdin.close()

    def ask(self, **request: Any) -> Any:
        """Return the worker's answer. Raises HelmError."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        said = json.loads(self.process.stdout.readline())
        if "error" in said:
            raise HelmError(said["error"])
        return said["result"]

    def render(self, values: Values, *, name: str = "web", namespace: str = "sites") -> Release:
        """Return what `helm install` would make of `values`. Raises HelmError."""
        files: dict[str, str] = self.ask(do="render", values=values, name=name, namespace=namespace)
        objects: list[Object] = []
        for path, text in files.items():
            if not path.endswith("NOTES.txt"):
                objects.extend(one for one in yaml.safe_load_all(text) if one)
        return Release(objects, next(text for path, text in files.items() if path.endswith("NOTES.txt")))

    def lint(self, values: Values, version: str) -> list[str]:
        """Return what `helm lint --strict` finds, and what guards say."""
        found: list[str] = self.ask(do="lint", values=values, version=version)
        return found
