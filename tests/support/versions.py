"""A Python whose roles can each be of another wire version: what a tree is like while a release is rolled out.

Nothing of an older or newer release exists to test with, so they are made: copies of src/pyttpd whose `wire` says that
it is the next version (and speaks this one as well), or the one after that (and does not), or the one before (and
speaks no other). A virtual environment chooses by the command line which copy a role's process imports; the product
knows nothing of it.

    with releases() as some:
        tree = start(python=some.python)
        some.choose({"umaster": 1})      # whoever starts umaster from now on starts the next release's
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyttpd
from pyttpd.wire.messages import VERSION

#: Run by `site`, before anything of ours is imported. The runner of a plain tree has init's module name; it is no role.
CHOOSER = """
import sys
from pathlib import Path

def choose(folder):
    if "--plain" not in sys.orig_argv:
        for line in (folder / "chosen").read_text().splitlines():
            role, copy = line.split("=")
            if f"pyttpd_{role}" in sys.orig_argv:
                sys.path.insert(0, str(folder / copy))

choose(Path(sys.prefix))
"""


@dataclass(frozen=True, slots=True)
class Releases:
    """Made by `releases`. `folder` is the environment, `python` its interpreter."""

    folder: Path

    @property
    def python(self) -> str:
        return str(self.folder / "bin/python")

    def choose(self, ahead: dict[str, int]) -> None:
        """Say how many versions ahead (1, 2) or behind (-1) each role is that is started from now on; who isn't named
        is as we are.
        """
        lines = "".join(f"{role}=ahead-{steps}\n" for role, steps in ahead.items() if steps)
        new = self.folder / "chosen.new"
        new.write_text(lines)
        new.chmod(0o644)
        new.rename(self.folder / "chosen")


def _copy(folder: Path, version: int) -> None:
    """Copy the shared library to `folder` and make it speak `version` and the one before, if there was one."""
    source = Path(pyttpd.__file__).parent
    shutil.copytree(source, folder / "pyttpd", ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "pyttpd/wire/messages.py"
    text = file.read_text()
    for name, value in (("VERSION", version), ("OLDEST_VERSION", max(1, version - 1))):
        text, count = re.subn(rf"^{name} = \d+$", f"{name} = {value}", text, flags=re.MULTILINE)
        assert count == 1, name
    file.write_text(text)


@contextlib.contextmanager
def releases() -> Iterator[Releases]:
    """Make the environment, with the next release and the one after it, where every uid may read."""
    folder = Path(tempfile.mkdtemp(prefix="pyttpd-versions-", dir="/tmp"))
    try:
        base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
        subprocess.run([base, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
        site = next((folder / "lib").glob("python3*/site-packages"))
        packages = sysconfig.get_path("purelib")
        (site / "chooser.py").write_text(CHOOSER)
        (site / "versions.pth").write_text(f"import site; site.addsitedir({packages!r})\nimport chooser\n")
        for steps in (-1, 1, 2):
            _copy(folder / f"ahead-{steps}", VERSION + steps)
        for path in (folder, *folder.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() else 0o644)
        some = Releases(folder)
        some.choose({})
        yield some
    finally:
        shutil.rmtree(folder)
