"""Lay programs that a tenant's application needs into the root of its image: each with the shared objects that it
loads, asked from the dynamic loader itself (ldd), and with the files that are named, and nothing else of its packages.

Runs inside a build stage of a Dockerfile (Debian, with the programs installed), as root:

    python3 programs.py --out /out /usr/bin/perl /usr/lib/x86_64-linux-gnu/perl-base

A path may be a program, another file or a folder; links are followed. Shared objects keep their place, where the
image's loader looks, and those of folders are looked at, too. Files belong to root, nobody may write them, and all have
one time.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from pathlib import Path

from rootfs import settle  # type: ignore[import-not-found]  # beside this file, where it is run from


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the root to add to; made if need be")
    parser.add_argument("paths", type=Path, nargs="+", help="what is wanted, with its absolute path")
    arguments = parser.parse_args(argv)
    out: Path = arguments.out
    objects: list[Path] = []
    for path in arguments.paths:
        target = place(out, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, target, dirs_exist_ok=True)
        else:
            shutil.copy2(path, target)
        files = [path, *path.rglob("*")] if path.is_dir() else [path]
        objects += [file for file in files if file.is_file() and file.read_bytes()[:4] == b"\x7fELF"]
    for library in sorted(libraries(objects)):
        target = place(out, library)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(library, target, follow_symlinks=True)
    settle(out, for_any_uid=())


def place(out: Path, path: Path) -> Path:
    """Return where a path of this system lies in the root, whose /lib and /lib64 are links into /usr."""
    inner = path.relative_to("/")
    return out / (inner if inner.parts[0] not in ("lib", "lib64", "bin", "sbin") else "usr" / inner)


def libraries(objects: list[Path]) -> set[Path]:
    """Return the shared objects that `objects` load, the loader among them."""
    if not objects:
        return set()
    done = subprocess.run(["ldd", *map(str, objects)], check=True, capture_output=True, text=True)
    if missing := re.findall(r"^\s*(\S+) => not found", done.stdout, re.MULTILINE):
        raise SystemExit(f"programs: shared objects that are nowhere: {sorted(set(missing))}")
    return {Path(path) for path in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", done.stdout, re.MULTILINE)}


if __name__ == "__main__":
    main()
