#!/usr/bin/env python3
"""Assemble a site for the tenants' image: `build-site SOURCE OUT`, in the image pyttpd-site-builder.

A site's Dockerfile is two stages, and this is what the first one runs (docs/first-tenant.md):

    FROM pyttpd-site-builder AS site
    RUN --mount=type=bind,target=/src build-site /src /out/site
    FROM pyttpd-vhost
    COPY --from=site /out/site/ /

What it puts into OUT:

- /srv/site: the files of SOURCE, but what only building takes (Dockerfile, requirements.*) and what begins with a dot;
- /srv/packages: what requirements.lock names, by hash and nothing else; from SOURCE/.wheels if scripts/wheels has
  filled it (for builds that can reach no package index), else from the index that pip is configured for;
- shared objects of Debian's that a package needs and the tenants' image doesn't have.

All of it belongs to root, readable for every uid and writable for none, and is byte-compiled.
"""

from __future__ import annotations

import compileall
import os
import py_compile
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

#: The tenants' image as this builder has made it, to see what is there already.
IMAGE = Path("/out")
SITE, PACKAGES = Path("srv/site"), Path("srv/packages")
LOCK = "requirements.lock"
ONLY_FOR_BUILDING = ("Dockerfile", "requirements.*", ".*", "__pycache__")


def main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        sys.exit("usage: build-site SOURCE OUT")
    source, out = (Path(each) for each in arguments)
    if not source.is_dir():
        sys.exit(f"build-site: {source}: no such folder")
    shutil.copytree(source, out / SITE, ignore=shutil.ignore_patterns(*ONLY_FOR_BUILDING))
    if (source / LOCK).exists():
        install(source, out / PACKAGES)
        copy_shared_objects(out)
    compile_all(out)
    settle(out)


def install(source: Path, packages: Path) -> None:
    wheels = source / ".wheels"
    here = wheels.is_dir() and any(wheels.glob("*.whl"))
    offline = ["--no-index", f"--find-links={wheels}"] if here else []
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
               "--root-user-action=ignore", "--break-system-packages", "--no-compile", "--no-cache-dir",
               "--require-hashes", "--only-binary=:all:", "--no-deps", *offline,
               f"--target={packages}", "-r", str(source / LOCK)]  # fmt: skip
    if subprocess.run(command, check=False).returncode:
        sys.exit(
            f"build-site: the packages of {LOCK} can't be installed. If this build has no way to a package index: "
            "`make wheels`, which downloads them outside, and build again"
        )
    # Programs would name an interpreter that isn't there.
    shutil.rmtree(packages / "bin", ignore_errors=True)


def copy_shared_objects(out: Path) -> None:
    modules = sorted(str(path) for path in out.rglob("*.so*") if path.is_file())
    if not modules:
        return
    listing = subprocess.run(["ldd", *modules], check=False, capture_output=True, text=True).stdout
    if missing := sorted(set(re.findall(r"^\s*(\S+) => not found", listing, re.MULTILINE))):
        sys.exit(f"build-site: a package needs what Debian's image doesn't have: {', '.join(missing)}")
    for found in sorted(set(re.findall(r"=> (/\S+) \(0x", listing))):
        path = Path(found)
        if path.is_relative_to(out):
            continue
        target = Path("usr") / path.relative_to("/usr" if path.is_relative_to("/usr") else "/")
        if not (IMAGE / target).exists():
            (out / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, out / target, follow_symlinks=True)


def compile_all(out: Path) -> None:
    """Byte-compile, valid by decree: a read-only image cannot change under its byte code."""
    ok = compileall.compile_dir(
        out, quiet=1, stripdir=str(out), prependdir="/", workers=0, maxlevels=40,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )  # fmt: skip
    if not ok:
        sys.exit("build-site: something does not compile")


def settle(out: Path) -> None:
    for path in [*out.rglob("*"), out]:
        if not path.is_symlink():
            mode = path.stat().st_mode
            program = stat.S_ISDIR(mode) or (mode & stat.S_IXUSR and path.suffix != ".py")
            path.chmod(0o755 if program else 0o644)
        os.chown(path, 0, 0, follow_symlinks=False)


if __name__ == "__main__":
    main(sys.argv[1:])
