"""docs/static.md: its example is made, served and asked as the page says, and answers as it says."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyttpd.config.limits import MAX_ERROR_PAGE_BYTES
from pyttpd.config.loader import load

from pyttpd_vhost.kinds.static import cache, listing, ranges
from pyttpd_vhost.site import Site

from .conftest import ListLog, Server, close

DOCUMENT = (Path(__file__).resolve().parents[3] / "docs/static.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)


def run(folder: Path, number: int) -> None:
    """Run a block of shell commands of the page."""
    script = blocks("sh")[number]
    subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=folder, check=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pyttpd.toml").write_text(blocks("toml")[0])
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    run(folder, 0)
    site = Site(load(folder).share_for_vhost("photos"), ListLog())
    site.load()
    server = Server(site)
    server.start()
    yield server
    server.stop()
    close(site)


@pytest.mark.program("curl")
def test_the_example(server: Server, folder: Path) -> None:
    [console] = blocks("console")
    steps = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", console, re.MULTILINE)
    assert len(steps) == 8
    for command, expected in steps:
        here = command.replace("curl ", f"curl --connect-to photos.example:8080:127.0.0.1:{server.port} ", 1)
        done = subprocess.run(["bash", "-c", here], cwd=folder, capture_output=True, check=True, timeout=20)
        assert done.stdout.decode().replace("\r", "") == expected, command
    for later in range(1, len(blocks("sh"))):
        run(folder, later)
    assert (folder / "site/index.html").read_text() == "<h1>My photos</h1>\n"
    assert (folder / "site/albums").readlink() == Path("albums-2")
    assert (folder / "site/index.html.gz").exists()
    url = f"http://photos.example:{server.port}/"
    ask = ["curl", "-s", "--compressed", "--resolve", f"photos.example:{server.port}:127.0.0.1", url]
    assert subprocess.check_output(ask, timeout=20) == b"<h1>My photos</h1>\n"


def test_the_numbers() -> None:
    for text in (
        f"at most {cache.MAX_BYTES >> 20} MiB",
        f"most {cache.MAX_DESCRIPTORS}",
        f"At most {listing.MAX_ENTRIES} entries",
        f"More than {ranges.MAX_RANGES} ranges",
        f"at most {MAX_ERROR_PAGE_BYTES >> 20} MiB",
    ):
        assert text in " ".join(DOCUMENT.split()), text
