"""The images, looked at from outside: what `docker save` writes, read as what it is, a stack of tar archives.

Nothing is run in an image to find out about it: a program in there could say anything.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[2]
#: Image to role. The examples are the tenants' image with a site in it.
IMAGES = {
    "pyttpd-init": "init",
    "pyttpd-master": "master",
    "pyttpd-umaster": "umaster",
    "pyttpd-listener": "listener",
    "pyttpd-vhost": "vhost",
    "pyttpd-vhost-static": "vhost",
    "pyttpd-vhost-wsgi": "vhost",
    "pyttpd-vhost-asgi": "vhost",
    "pyttpd-vhost-cgi": "vhost",
    "pyttpd-vhost-fastcgi": "vhost",
    "pyttpd-vhost-scgi": "vhost",
    "pyttpd-vhost-handoff": "vhost",
}
SITE = "usr/lib/python3/dist-packages/"


@dataclass(frozen=True, slots=True)
class Image:
    """One image: its configuration, and its files by path (no leading slash) with all layers laid over each other."""

    name: str
    role: str
    config: dict[str, Any]
    files: dict[str, tarfile.TarInfo]
    metadata: dict[str, str]

    @property
    def size(self) -> int:
        """Return the sum of its files' lengths, without a site's own."""
        return sum(
            info.size for path, info in self.files.items() if info.isreg() and not path.startswith("srv/")
        )

    def distributions(self) -> dict[str, str]:
        """Return what is installed, name to version, wherever it lies."""
        found = {}
        for path, text in self.metadata.items():
            name = re.search(r"^Name: (.+)$", text, re.MULTILINE)
            version = re.search(r"^Version: (.+)$", text, re.MULTILINE)
            assert name and version, path
            found[normalised(name[1])] = version[1]
        return found


def normalised(name: str) -> str:
    """Return a distribution's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(role: str) -> dict[str, str]:
    """Return what the role's lock names, name to version."""
    lock = (TOP / "services" / role / "requirements.lock").read_text()
    return {
        normalised(name): version
        for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", lock, re.MULTILINE)
    }


@functools.cache
def build(tag: str) -> None:
    """Build all images under `tag`; what is built already costs nothing."""
    done = subprocess.run([TOP / "scripts/images"], env=environment(tag), capture_output=True, text=True)
    assert done.returncode == 0, f"scripts/images ended with {done.returncode}:\n{done.stdout}{done.stderr}"


def environment(tag: str) -> dict[str, str]:
    import os

    return {**os.environ, "PYTTPD_TAG": tag}


@functools.cache
def load(name: str, tag: str) -> Image:
    """Build the images if need be, and return one of them."""
    build(tag)
    with tempfile.TemporaryFile() as file:
        subprocess.run(["docker", "save", f"{name}:{tag}"], stdout=file, check=True)
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            return _read(name, archive)


def _read(name: str, archive: tarfile.TarFile) -> Image:
    def part(path: str) -> Any:
        member = archive.extractfile(path)
        assert member is not None
        return member

    (manifest,) = json.load(part("manifest.json"))
    config = json.load(part(manifest["Config"]))
    files: dict[str, tarfile.TarInfo] = {}
    metadata = {}
    for layer_name in manifest["Layers"]:
        with part(layer_name) as stream, tarfile.open(fileobj=stream) as layer:
            for info in layer:
                path = info.name.removeprefix("./").rstrip("/")
                # A layer that takes something away would make the sum of layers larger than what is to be seen.
                assert not path.rpartition("/")[2].startswith(".wh."), f"{path} takes a file away"
                files[path] = info
                if path.endswith(".dist-info/METADATA"):
                    member = layer.extractfile(info)
                    assert member is not None
                    metadata[path] = member.read().decode()
    return Image(name, IMAGES[name], config, files, metadata)
