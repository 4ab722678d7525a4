#!/usr/bin/env python3
"""Write what isn't in the repository: the download, the same 10 MB everywhere, and packed copies of style sheets.

usage: generate.py [OUTDIR]      (default: site, next to this file)
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

SIZE = 10 * 1024 * 1024
LINE = 64  # bytes, so that a broken place in a received file can be found by its number


def write(folder: Path) -> Path:
    """Write `download.bin` into `folder`, numbered lines of 64 bytes, and return its path."""
    path = folder / "download.bin"
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for number in range(SIZE // LINE):
            file.write(b"%010d " % number + b"." * (LINE - 12) + b"\n")
    return path


def pack(folder: Path) -> list[Path]:
    """Write `a.css.gz` beside each `a.css` in `folder`, as a build would, and return their paths."""
    packed = []
    for path in sorted(folder.glob("*.css")):
        packed.append(path.with_name(f"{path.name}.gz"))
        packed[-1].write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    return packed


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit(__doc__)
    site = Path(sys.argv[1]) if len(sys.argv) == 2 else Path(__file__).parent / "site"
    write(site)
    pack(site)
