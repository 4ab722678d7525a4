"""Loaded by every test of the repository, the roles' own ones included. What it does is in tests/support."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent / "bench"))  # tests/unit/test_bench_report.py: `suite`

pytest_plugins = ["support.needs", "support.leaks", "support.tree"]
