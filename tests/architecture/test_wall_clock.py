"""Who looks at the machine's wall clock, and why it does no harm that it may be set at any time.

Everything that waits, ages or is late goes by a monotonic clock. tests/integration/test_clock.py sets the wall clock
under load.
"""

from __future__ import annotations

import ast
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
#: By module. Whoever adds a line says what becomes of it when the clock is set a day forward, or an hour back.
READERS = {
    "src/pyttpd/log.py": "stamps lines: they follow the clock",
    "src/pyttpd/metrics.py": "says when a process was started, by the clock of that time, as Prometheus has it",
    "src/pyttpd/health.py": "a file that looks old, or young, is looked at again a heartbeat later",
    "services/ctl/src/pyttpd_ctl/status.py": "shows how old a process is: off by what the clock was set by since",
    "services/listener/src/pyttpd_listener/answers.py": "writes Date",
    "services/vhost/src/pyttpd_vhost/http/response.py": "writes Date, made anew when the second is another",
    "services/vhost/src/pyttpd_vhost/http/dates.py": "reads a year of two digits, as the century has it",
    "services/vhost/src/pyttpd_vhost/access.py": "stamps lines: they follow the clock",
    "services/vhost/src/pyttpd_vhost/worker.py": "says in its row when it was born; nobody reckons with that",
    "services/vhost/src/pyttpd_vhost/openat2.py": "what has just been changed, or is of the future, isn't kept",
    "services/vhost/src/pyttpd_vhost/kinds/static/files.py": "Last-Modified is no later than the answer",
    "services/vhost/src/pyttpd_vhost/kinds/static/cache.py": "what would be younger than the answer is made anew",
    "services/vhost/src/pyttpd_vhost/kinds/static/kind.py": "a date in If-Range counts only if it is in the past",
}
#: Of the modules time, datetime and email.utils.
CLOCKS = {"time", "time_ns", "localtime", "ctime", "now", "utcnow", "today", "formatdate", "CLOCK_REALTIME"}
#: Without an argument they ask the clock.
WITHOUT_ARGUMENT = {"gmtime"}
MODULES = {"time", "datetime", "date", "email.utils"}


def reads_the_clock(tree: ast.Module) -> bool:
    """Say whether `tree` asks for the wall clock's time, under whatever name."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in MODULES:
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=module), attr=name) if module in MODULES and name in CLOCKS:
                return True
            case ast.Attribute(value=ast.Attribute(attr=module), attr=name) if (
                module in MODULES and name in CLOCKS
            ):
                return True
            case ast.Name(id=name) if names.get(name) in CLOCKS:
                return True
            case ast.Call(func=ast.Attribute(value=ast.Name(id="time"), attr=name), args=[]) if (
                name in WITHOUT_ARGUMENT
            ):
                return True
            case ast.Call(func=ast.Attribute(value=ast.Name(id="time"), attr="strftime"), args=[_]):
                return True
            case ast.Call(func=ast.Name(id=name), args=[]) if names.get(name) in WITHOUT_ARGUMENT:
                return True
    return False


def test_it_finds_them() -> None:
    for text in (
        "import time\nx = time.time()",
        "from time import time as now\nx = now()",
        "import datetime\nx = datetime.datetime.now()",
        "from datetime import datetime\nx = datetime.utcnow()",
        "from email.utils import formatdate\nx = formatdate()",
        "import time\nx = time.clock_gettime(time.CLOCK_REALTIME)",
        "import time\nx = time.gmtime()",
        "import time\nf = time.time",
        "import time\nx = time.strftime('%Y')",
    ):
        assert reads_the_clock(ast.parse(text)), text
    for text in ("import time\nx = time.monotonic()", "import time\nx = time.gmtime(3)", "self.loop.now"):
        assert not reads_the_clock(ast.parse(text)), text


def test_only_these_modules_look_at_the_wall_clock() -> None:
    files = [*TOP.glob("src/**/*.py"), *TOP.glob("services/*/src/**/*.py")]
    found = {str(file.relative_to(TOP)) for file in files if reads_the_clock(ast.parse(file.read_text()))}
    assert found == set(READERS)
