"""Renders charts in a process of its own: python helm_worker.py CHART.

Helm is Go in a library, and brings threads and signal handlers that pytest's own process, which forks, must not have.
One request a line on standard input, one answer a line on standard output, both JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from typing import Any

import helm_python


def lint(path: str, values: dict[str, Any], version: str) -> list[str]:
    """Return findings, and what `fail` has said: to lint that is no finding, it goes to standard error."""
    with tempfile.TemporaryFile() as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            found = helm_python.lint(path, values, strict=True, kube_version=version)
        finally:
            os.dup2(before, 2)
            os.close(before)
        file.seek(0)
        failed = [line.decode() for line in file if b"fail message=" in line]
    return [*(f"{each['path']}: {each['error']}" for each in found["messages"]), *found["errors"], *failed]


def answer(chart: helm_python.Chart, path: str, request: dict[str, Any]) -> Any:
    match request["do"]:
        case "render":
            return chart.render(
                request["values"], name=request["name"], namespace=request["namespace"], is_install=True
            )
        case "lint":
            return lint(path, request["values"], request["version"])
        case "validate":
            return chart.validate_schema(request["values"])
        case what:
            raise ValueError(what)


def main(path: str) -> None:
    with helm_python.Chart.load(path) as chart:
        for line in sys.stdin:
            try:
                said = {"result": answer(chart, path, json.loads(line))}
            except helm_python.HelmError as error:
                said = {"error": str(error)}
            print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
