"""Make C of what runs for each connection and each request: mypyc compiles these modules as they are.

    native.py SITE               where `pyttpd` and roles are installed: extension modules are put beside their sources
    native.py --check FOLDER...  only find out whether the modules can be compiled (part of `make lint`)

The modules are ordinary Python with types, and run as such where nobody has compiled them; compiled, they take a
sixth less of the processor for a connection, and a quarter less for a request. Python imports the extension module
where there is one, and the source otherwise: so this is the last step of an installation, and never done in the
repository, where the two would fall apart.

Runs with the Python that is to import them, which needs mypy and setuptools (requirements/native.lock), a C compiler,
and Python's header files. scripts/venv does that for the environments that serve, scripts/rootfs.py for the images.

What can't be compiled: classes made of bytes or of another built-in one; `break` or `continue` out of a
`try ... finally`. What holds then: a function checks its arguments' types when it is called (a fake that a test hands
in must be of the right class), functions of a module call each other without looking them up (replacing one from
outside has no effect on them), an object has the attributes that its class declares, and a generator expression is a
list: all of it is made before the first of it is used. A class's __new__ calls its __init__.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

from mypyc.build import mypycify
from setuptools import Extension, setup

#: By package. What isn't here is either not on a connection's way, or can't be compiled. Who inherits from a class of
#: these is here, too (tests/architecture/test_native.py): otherwise no object could be made of it.
MODULES = {
    "pyttpd": (
        "channel",
        "fdpass",
        "head",
        "loop",
        "tcp",
        "wire.client",
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
        "http.h11",
        "http.heads",
        "http.llhttp",
        "http.patience",
        "http.paths",
        "http.response",
        "http.stream",
        "kinds.asgi.stream",
        "kinds.base",
        "kinds.handoff.peeking",
        "kinds.wsgi",
        "logs",
        "offers",
        "output",
        "parking",
        "worker",
    ),
}
#: What distributions build everything with, and not all Pythons hand on to extension modules.
HARDENED = [
    "-fstack-protector-strong",
    "-fstack-clash-protection",
    "-U_FORTIFY_SOURCE",
    "-D_FORTIFY_SOURCE=2",
]
HARDENED_LINK = ["-Wl,-z,relro,-z,now"]
CONFIGURATION = "[mypy]\nfollow_imports = silent\nignore_missing_imports = True\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="translate only")
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="where the packages are")
    arguments = parser.parse_args()
    where = {
        package: folder.resolve()
        for package in MODULES
        for folder in arguments.folders
        if (folder / package / "__init__.py").is_file()
    }
    if "pyttpd" not in where:
        parser.error(f"there is no pyttpd in {', '.join(map(str, arguments.folders))}")
    if len(arguments.folders) > 1 and not arguments.check:
        parser.error("one folder at a time, please")
    with tempfile.TemporaryDirectory(prefix="pyttpd-native-") as work:
        for package, folder in where.items():
            shutil.copytree(folder / package, Path(work, package), ignore=shutil.ignore_patterns("*.so"))
        os.chdir(work)
        extensions = translate(list(where))
        if not arguments.check:
            for extension in extensions:
                # New lists: all extensions share theirs.
                extension.extra_compile_args = [*extension.extra_compile_args, *HARDENED]
                extension.extra_link_args = [*extension.extra_link_args, *HARDENED_LINK]
            options = ["--quiet", "build_ext", "--build-lib=out"]
            setup(name="native", ext_modules=extensions, packages=[], script_args=options)
            for made in Path("out").rglob("*.so"):
                shutil.copy2(made, where["pyttpd"] / made.relative_to("out"))


def translate(packages: list[str]) -> list[Extension]:
    """Make C of what the working directory has of `packages`: one library, so that they call each other directly."""
    Path("mypy.ini").write_text(CONFIGURATION)
    os.environ["MYPYPATH"] = "."
    sources = [str(source_of(package, module)) for package in packages for module in MODULES[package]]
    return mypycify(["--config-file=mypy.ini", *sources], group_name="pyttpd", opt_level="3", debug_level="0")


def source_of(package: str, module: str) -> Path:
    return Path(package, *module.split(".")).with_suffix(".py")


if __name__ == "__main__":
    main()
