"""Make C of what runs for each connection and each request: mypyc compiles these modules as they are.

    native.py SITE      SITE is where `pyttpd` and roles are installed; extension modules are put beside their sources

The modules are ordinary Python with types, and run as such where nobody has compiled them: with a compiler they take a
quarter less of the processor. Python imports the extension module where there is one, and the source otherwise; so this
is the last step of an installation, and never done in the repository, where the two would fall apart.

Runs with the Python that is to import them, which needs mypy and setuptools (requirements/native.lock), a C compiler and
Python's header files. scripts/venv does that for the environments that serve, scripts/rootfs.py for the images.

What can be compiled: mypyc knows no class made of bytes or of another built-in one, no `break` or `continue` out of
`try ... finally`. What holds then: a function checks its arguments' types when it is called (a fake that a test hands in
must be of the right class), functions of a module call each other without looking them up (replacing one from outside
has no effect on them), and an object has the attributes that its class declares.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from mypyc.build import mypycify
from setuptools import setup

#: By package. What isn't here is either not on a connection's way, or can't be compiled.
MODULES = {
    "pyttpd": (
        "channel",
        "fdpass",
        "head",
        "loop",
        "tcp",
        "wire.errors",
        "wire.messages",
        "wire.packets",
        "wire.permits",
    ),
    "pyttpd_listener": ("listener",),
    "pyttpd_umaster": ("router", "umaster"),
    "pyttpd_vhost": (
        "crew",
        "http.body",
        "http.chunked",
        "http.connection",
        "http.dates",
        "http.exchange",
        "http.heads",
        "http.llhttp",
        "http.patience",
        "http.paths",
        "http.response",
        "http.stream",
        "kinds.base",
        "kinds.wsgi",
        "logs",
        "offers",
        "output",
        "parking",
        "worker",
    ),
}
CONFIGURATION = "[mypy]\nfollow_imports = silent\nignore_missing_imports = True\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("site", type=Path, help="where the packages are installed")
    site: Path = parser.parse_args().site.resolve()
    here = [package for package in MODULES if (site / package / "__init__.py").is_file()]
    if "pyttpd" not in here:
        raise SystemExit(f"native: there is no pyttpd in {site}")
    with tempfile.TemporaryDirectory(prefix="pyttpd-native-") as folder:
        for package in here:
            shutil.copytree(site / package, Path(folder, package), ignore=shutil.ignore_patterns("*.so"))
        os.chdir(folder)
        compile_here(here)
        for made in Path("out").rglob("*.so"):
            shutil.copy2(made, site / made.relative_to("out"))


def compile_here(packages: list[str]) -> None:
    """Compile what the working directory has of `packages` into out/."""
    groups = [([str(source_of(package, module)) for module in MODULES[package]], package) for package in packages]
    Path("mypy.ini").write_text(CONFIGURATION)
    os.environ["MYPYPATH"] = "."
    sources = [path for paths, _ in groups for path in paths]
    extensions = mypycify(["--config-file=mypy.ini", *sources], separate=groups, opt_level="2", debug_level="0")
    arguments = ["--quiet", "build_ext", f"--parallel={len(os.sched_getaffinity(0))}", "--build-lib=out"]
    setup(name="native", ext_modules=extensions, packages=[], script_args=arguments)


def source_of(package: str, module: str) -> Path:
    return Path(package, *module.split(".")).with_suffix(".py")


if __name__ == "__main__":
    sys.exit(main())
