"""Static files that change, are packed, are many: the cache, variants, ranges, listings, races."""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from pyttpd.config.kinds import StaticOptions

from pyttpd_vhost import openat2
from pyttpd_vhost.http.errors import ClientGone
from pyttpd_vhost.http.response import STATUS
from pyttpd_vhost.http.stream import OpenFile, Stream
from pyttpd_vhost.kinds.static import StaticKind, cache, listing
from pyttpd_vhost.kinds.static.files import READ_LIMIT
from pyttpd_vhost.openat2 import Root
from pyttpd_vhost.site import Site

from .conftest import Answer, Client, ListLog, Server, close, descriptors, make_share, serves

OLD = 1_700_000_000
SMALL = b"small content " * 10
BIG = bytes(range(256)) * 4000


def make_site(root: Path, **settings: Any) -> Site:
    site = Site(make_share(**serves(root, **settings)), ListLog())
    site.kind = StaticKind(StaticOptions(str(root), **settings), site)
    return site


class Serving:
    """Servers (threads) of one site, and a client with a kept connection to each."""

    def __init__(self, site: Site, threads: int = 1) -> None:
        self.site = site
        self.servers = [Server(site) for _ in range(threads)]
        for server in self.servers:
            server.start()
        self.sock = self.servers[0].connect()
        self.client = Client(self.sock)

    def ask(self, target: str, headers: str = "", method: str = "GET") -> Answer:
        request = f"{method} {target} HTTP/1.1\r\nHost: a.test\r\n{headers}\r\n"
        self.sock.sendall(request.encode("latin-1"))
        return self.client.answer(method)

    def close(self) -> None:
        self.sock.close()
        for server in self.servers:
            server.stop()
        close(self.site)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"outside")
    (root / "small.txt").write_bytes(SMALL)
    (root / "big.bin").write_bytes(BIG)
    (root / "folder/file.txt").write_bytes(b"in folder")
    return root


@pytest.fixture
def serving(root: Path) -> Iterator[Callable[..., Serving]]:
    made: list[Serving] = []

    def start(threads: int = 1, **settings: Any) -> Serving:
        made.append(Serving(make_site(root, **settings), threads))
        return made[-1]

    yield start
    for each in made:
        each.close()


@pytest.fixture
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as left alone at once, so that what is new is kept as well."""
    monkeypatch.setattr(openat2, "_SETTLED_NS", -(10**18))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is opened below roots."""
    paths: list[bytes] = []
    original = Root.open

    def counting(self: Root, path: bytes) -> int:
        paths.append(path)
        return original(self, path)

    monkeypatch.setattr(Root, "open", counting)
    return paths


def tick(path: Path) -> None:
    """Wait until a further change of `path` gets another time: the kernel's clock moves in steps."""
    scratch = path.parent.parent / "scratch"
    before = path.stat().st_ctime_ns
    while True:
        scratch.write_bytes(b"")
        scratch.chmod(0o600 if scratch.stat().st_mode & 0o077 else 0o644)
        if scratch.stat().st_ctime_ns > before:
            return


# ---- what is remembered is what there is ----


def by_rename(root: Path) -> None:
    (root / "new").write_bytes(b"new")
    (root / "new").rename(root / "small.txt")


def by_rename_of_the_same_length(root: Path) -> None:
    (root / "new").write_bytes(SMALL[::-1])
    os.utime(root / "new", ns=((root / "small.txt").stat().st_mtime_ns,) * 2)
    (root / "new").rename(root / "small.txt")


def in_place(root: Path) -> None:
    with (root / "small.txt").open("r+b") as file:
        file.write(b"S")


def in_place_with_the_old_time(root: Path) -> None:
    before = (root / "small.txt").stat()
    with (root / "small.txt").open("r+b") as file:
        file.write(b"S")
    os.utime(root / "small.txt", ns=(before.st_atime_ns, before.st_mtime_ns))


def by_truncation(root: Path) -> None:
    os.truncate(root / "small.txt", 3)


def by_a_larger_one(root: Path) -> None:
    (root / "small.txt").write_bytes(BIG)


def by_unlink(root: Path) -> None:
    (root / "small.txt").unlink()


def by_a_folder(root: Path) -> None:
    (root / "small.txt").unlink()
    (root / "small.txt").mkdir()


def by_a_link(root: Path) -> None:
    (root / "small.txt").unlink()
    (root / "small.txt").symlink_to("folder/file.txt")


def by_a_link_out(root: Path) -> None:
    (root / "small.txt").rename(root.parent / "small.txt")
    (root / "small.txt").symlink_to("../small.txt")


CHANGES = [
    by_rename,
    by_rename_of_the_same_length,
    in_place,
    in_place_with_the_old_time,
    by_truncation,
    by_a_larger_one,
    by_unlink,
    by_a_folder,
    by_a_link,
]


@pytest.mark.parametrize("settled", [True, False], ids=["settled", "fresh"])
@pytest.mark.parametrize(
    "settings", [{}, {"precompressed": ()}, {"cache": 0}], ids=["default", "plain", "off"]
)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_seen_at_once(
    root: Path,
    serving: Callable[..., Serving],
    change: Callable[[Path], None],
    settings: dict[str, Any],
    settled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if settled:
        monkeypatch.setattr(openat2, "_SETTLED_NS", -(10**18))
    one = serving(**settings)
    tags = set()
    for _ in range(3):
        answer = one.ask("/small.txt")
        assert answer.body == SMALL
        tags.add(answer["ETag"])
    assert len(tags) == 1
    tick(root / "small.txt")
    change(root)
    path = root / "small.txt"
    for _ in range(3):
        answer = one.ask("/small.txt")
        if path.is_file():
            assert (answer.status, answer.body) == (200, path.read_bytes())
            # the one change that only the time of change tells: the tag is of modification
            assert (answer["ETag"] in tags) is (change is in_place_with_the_old_time)
        else:
            assert answer.status == (301 if path.is_dir() else 404)


def test_a_link_that_leads_out_later_is_not_followed_if_the_file_is_another(
    root: Path, serving: Callable[..., Serving], calm: None
) -> None:
    (root / "link").symlink_to("small.txt")
    one = serving()
    for _ in range(3):
        assert one.ask("/link").body == SMALL
    (root / "link").unlink()
    (root / "link").symlink_to("../secret")
    for _ in range(3):
        assert one.ask("/link").status == 404


def test_a_folder_that_is_exchanged(root: Path, serving: Callable[..., Serving], calm: None) -> None:
    """A release is switched by a link, as deployments do it."""
    for name in ("one", "two"):
        (root / name).mkdir()
        (root / name / "index.html").write_bytes(name.encode())
    (root / "current").symlink_to("one")
    serve = serving()
    for name in ("one", "two", "one"):
        (root / "next").symlink_to(name)
        (root / "next").rename(root / "current")
        for _ in range(3):
            assert serve.ask("/current/").body == name.encode()


def test_an_index_that_comes_and_goes(root: Path, serving: Callable[..., Serving], calm: None) -> None:
    one = serving(index=("index.html", "index.htm"))
    assert one.ask("/folder/").status == 403
    (root / "folder/index.htm").write_bytes(b"second")
    for _ in range(3):
        assert one.ask("/folder/").body == b"second"
    tick(root / "folder")
    (root / "folder/index.html").write_bytes(b"first")
    for _ in range(3):
        assert one.ask("/folder/").body == b"first"
    tick(root / "folder")
    (root / "folder/index.html").unlink()
    assert one.ask("/folder/").body == b"second"
    (root / "folder/index.htm").unlink()
    assert one.ask("/folder/").status == 403


@pytest.mark.parametrize("target", ["/small.txt", "/big.bin", "/folder/file.txt", "/folder/../small.txt"])
def test_what_is_settled_is_opened_once(
    serving: Callable[..., Serving], calm: None, opened: list[bytes], target: str
) -> None:
    one = serving(precompressed=())
    opened.clear()
    for headers in ("", "", "", "If-None-Match: *\r\n", "Range: bytes=0-0\r\n", "X: y\r\n"):
        one.ask(target, headers)
        one.ask(target, headers, "HEAD")
    assert len(opened) == 1


def test_what_is_fresh_is_opened_each_time(serving: Callable[..., Serving], opened: list[bytes]) -> None:
    one = serving(precompressed=())
    opened.clear()
    for _ in range(4):
        one.ask("/small.txt")
    assert len(opened) == 4


def test_a_turn_is_one_look(root: Path) -> None:
    site = make_site(root)
    kind = site.kind
    assert isinstance(kind, StaticKind)
    entry = kind._folder.load(b"small.txt")
    assert kind._cache.valid(entry)
    site.turn = object()
    assert kind._cache.valid(entry)
    (root / "small.txt").unlink()
    assert kind._cache.valid(entry)  # all requests of this turn had come before
    site.turn = object()
    assert not kind._cache.valid(entry)
    site.turn = None
    assert not kind._cache.valid(entry)
    close(site)


def test_bounds(
    root: Path, serving: Callable[..., Serving], calm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        (root / f"{number}.txt").write_bytes(b"%02d" % number * 500)
        (root / f"{number}.bin").write_bytes(b"%02d" % number * READ_LIMIT)
    before = descriptors()
    monkeypatch.setattr(cache, "MAX_BYTES", 5500)
    monkeypatch.setattr(cache, "MAX_DESCRIPTORS", 3)
    one = serving(cache=10, precompressed=())
    kept = one.site.kind._cache  # type: ignore[attr-defined]
    for _ in range(2):
        for number in range(40):
            assert one.ask(f"/{number}.txt").body == b"%02d" % number * 500
            assert len(kept._entries) <= 10
            assert (
                kept._bytes == 1000 * len([path for path in kept._entries if path.endswith(b".txt")]) <= 5500
            )
    assert list(kept._entries) == [b"/%d.txt" % number for number in range(35, 40)]
    for number in range(40):
        assert one.ask(f"/{number}.bin").body == b"%02d" % number * READ_LIMIT
        assert kept._descriptors == len([path for path in kept._entries if path.endswith(b".bin")]) <= 3
        one.ask("/35.txt")  # who is asked for stays
        assert b"/35.txt" in kept._entries
    # the root, listener, epoll, and two ends of a connection
    assert descriptors(before + 3 + 5) == before + 3 + 5
    for entry in kept._entries.values():
        entry.checks = ((b"none", (0, 0, 0)),)
        entry.turn = None
    for path in list(kept._entries):
        assert kept.get(path) is None
    assert (kept._entries, kept._bytes, kept._descriptors) == ({}, 0, 0)


# ---- replaced while it is served ----


@pytest.mark.parametrize("settled", [True, False])
def test_never_mixed(
    root: Path, serving: Callable[..., Serving], settled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads serve, two clients ask, and somebody replaces the files all the time."""
    if settled:
        monkeypatch.setattr(openat2, "_SETTLED_NS", -(10**18))
    one = serving(2, cache=2)
    stop = threading.Event()
    faults: list[BaseException] = []

    def replaces() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            for name, size in (("small.txt", 100), ("big.bin", 100_000)):
                # the length tells the letter: within one step of the clock, nothing else would tell the tags apart
                letter = b"abc"[number % 3 : number % 3 + 1]
                (root / "new").write_bytes(letter * (size + number % 3))
                if number % 2:
                    (root / "new.gz").write_bytes(letter * (50 + number % 3))
                    (root / "new.gz").rename(root / f"{name}.gz")
                (root / "new").rename(root / name)

    def asks(server: Server) -> None:
        try:
            with server.connect() as sock:
                client = Client(sock)
                tags: dict[str, bytes] = {}
                for number in range(150):
                    for target in (b"/small.txt", b"/big.bin", b"/folder/file.txt"):
                        packed = b"Accept-Encoding: gzip\r\n" if number % 3 == 0 else b""
                        sock.sendall(b"GET %b HTTP/1.1\r\nHost: a.test\r\n%b\r\n" % (target, packed))
                        answer = client.answer()
                        assert answer.status == 200
                        if target != b"/folder/file.txt" and answer.body not in (SMALL, BIG):
                            assert len(set(answer.body)) == 1, "two files in one body"
                            if "Content-Encoding" not in answer:
                                assert len(answer.body) % 100 == b"abc".index(answer.body[:1])
                        assert tags.setdefault(answer["ETag"], answer.body) == answer.body
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=asks, args=(server,)) for server in one.servers]
    replacer = threading.Thread(target=replaces)
    for thread in (*threads, replacer):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    replacer.join()
    assert not faults, faults[0]


def overwritten(file: BinaryIO) -> None:
    file.write(b"x" * 1000)


def overwritten_by_a_longer_one(file: BinaryIO) -> None:
    file.truncate(0)
    file.write(b"x" * 60_000_000)


def overwritten_at_its_end(file: BinaryIO) -> None:
    file.seek(49_999_000)
    file.write(b"x" * 10_000_000)


def shrunk(file: BinaryIO) -> None:
    file.truncate(1000)


@pytest.mark.parametrize(
    "change",
    [overwritten, overwritten_by_a_longer_one, overwritten_at_its_end, shrunk],
    ids=lambda each: each.__name__,
)
def test_a_file_that_is_written_to_while_it_is_sent(
    root: Path, serving: Callable[..., Serving], change: Callable[[BinaryIO], None]
) -> None:
    large = root / "large.bin"
    large.write_bytes(bytes(50_000_000))
    one = serving()
    one.sock.sendall(b"GET /large.bin HTTP/1.1\r\nHost: a.test\r\n\r\n" * 2)
    got = len(one.sock.recv(1000))
    tick(large)
    with large.open("r+b") as file:
        change(file)
    while data := one.sock.recv(1 << 20):
        got += len(data)
    assert got < 50_000_000
    assert one.site.stats.gone == 1


def test_a_file_that_was_written_to_in_this_turn_is_not_sent_with_the_head_of_the_old(
    root: Path, serving: Callable[..., Serving], calm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = serving()
    for _ in range(3):
        assert one.ask("/big.bin").body == BIG
    with (root / "big.bin").open("r+b") as file:
        overwritten(file)
    monkeypatch.setattr(cache.Cache, "valid", lambda *_: True)  # as the turn's first request has found it
    one.sock.sendall(b"GET /big.bin HTTP/1.1\r\nHost: a.test\r\n\r\n")
    got = b""
    while data := one.sock.recv(1 << 20):
        got += data
    assert got.endswith(b"\r\n\r\n")
    assert one.site.stats.gone == 1


def test_a_file_that_grows_while_it_is_sent(root: Path, serving: Callable[..., Serving]) -> None:
    large = root / "large.bin"
    large.write_bytes(bytes(range(256)) * 100_000)
    one = serving()
    one.sock.sendall(b"GET /large.bin HTTP/1.1\r\nHost: a.test\r\n\r\n")
    one.client.data = one.sock.recv(1000)
    for _ in range(3):
        tick(large)
        with large.open("ab") as file:
            file.write(b"more")
        while len(one.client.data) < 1_000_000:
            one.client.data += one.sock.recv(65536)
    assert one.client.answer().body == bytes(range(256)) * 100_000
    assert len(one.ask("/large.bin").body) == 25_600_012


def test_a_file_that_is_about_to_grow_has_not_changed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """write(2) tells the new time first, and the new size when it is done."""
    path = root / "growing.log"
    path.write_bytes(b"a" * 10_000)
    opened = OpenFile(os.open(path, os.O_RDONLY), path.stat())
    before = path.stat()
    tick(path)
    with path.open("ab") as file:
        file.write(b"more")
    after = path.stat()
    between = os.stat_result((*after[:6], before.st_size, *after[7:10]), {"st_mtime_ns": after.st_mtime_ns})
    said = [between, between]
    fstat = os.fstat
    monkeypatch.setattr(os, "fstat", lambda fd: said.pop() if said else fstat(fd))
    assert not opened.changed()
    assert not said
    said += [between] * 100
    path.write_bytes(b"b" * 10_000)
    assert opened.changed()


def test_a_file_that_is_replaced_while_it_is_sent_is_sent_to_its_end(
    root: Path, serving: Callable[..., Serving]
) -> None:
    large = root / "large.bin"
    large.write_bytes(b"a" * 30_000_000)
    one = serving()
    one.sock.sendall(b"GET /large.bin HTTP/1.1\r\nHost: a.test\r\n\r\n")
    one.client.data = one.sock.recv(1000)
    (root / "new").write_bytes(b"b" * 1000)
    (root / "new").rename(large)
    assert one.client.answer().body == b"a" * 30_000_000
    assert one.ask("/large.bin").body == b"b" * 1000


@pytest.mark.parametrize("by", ["openat2", "steps"])
def test_a_folder_that_becomes_a_link_out(
    root: Path, serving: Callable[..., Serving], by: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Somebody exchanges a folder for a link to one outside, as fast as possible."""
    if by == "steps":
        monkeypatch.setattr(Root, "_open_by_openat2", _refused)
    monkeypatch.setattr(openat2, "_SETTLED_NS", -(10**18))
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("file.txt", "file.txt.gz", "index.html"):
        (outside / name).write_bytes(b"outside")
    (root / "folder/index.html").write_bytes(b"in folder")
    (root / "out").symlink_to("../outside")
    one = serving(listing=True)
    stop = threading.Event()

    def exchanges() -> None:
        while not stop.is_set():
            (root / "folder").rename(root / "away")
            (root / "out").rename(root / "folder")
            (root / "folder").rename(root / "out")
            (root / "away").rename(root / "folder")

    thread = threading.Thread(target=exchanges)
    thread.start()
    seen: set[int] = set()
    try:
        rounds = 0
        while rounds < 500 or not {200, 404} <= seen:
            rounds += 1
            for target in ("/folder/file.txt", "/folder/", "/folder", "/out/file.txt"):
                answer = one.ask(target, "Accept-Encoding: gzip\r\n")
                assert b"outside" not in answer.body
                seen.add(answer.status)
    finally:
        stop.set()
        thread.join()
    assert seen <= {200, 301, 403, 404, 503}


def _refused(_root: Root, _path: bytes) -> int:
    raise PermissionError


# ---- variants ----


def pack(root: Path, name: str, *, later: float = 0) -> None:
    for suffix in ("br", "zst", "gz"):
        packed = root / f"{name}.{suffix}"
        packed.write_bytes(suffix.encode() * 10)
        os.utime(packed, (OLD + later, OLD + later))
    os.utime(root / name, (OLD, OLD))


def test_variants(root: Path, serving: Callable[..., Serving]) -> None:
    pack(root, "small.txt")
    one = serving(cache_control={"*.txt": "max-age=60"})
    plain = one.ask("/small.txt")
    assert (plain.body, plain["Vary"], "Content-Encoding" in plain) == (SMALL, "Accept-Encoding", False)
    tags = {plain["ETag"]}
    for coding, suffix in (("br", b"br"), ("zstd", b"zst"), ("gzip", b"gz")):
        answer = one.ask("/small.txt", f"Accept-Encoding: {coding}\r\n")
        assert (answer.body, answer["Content-Encoding"]) == (suffix * 10, coding)
        assert answer["Content-Type"] == plain["Content-Type"]
        assert answer["Cache-Control"] == plain["Cache-Control"] == "max-age=60"
        assert answer["Vary"] == "Accept-Encoding"
        tags.add(answer["ETag"])
        again = one.ask("/small.txt", f"Accept-Encoding: {coding}\r\nIf-None-Match: {answer['ETag']}\r\n")
        assert (again.status, again["ETag"], again["Vary"]) == (304, answer["ETag"], "Accept-Encoding")
        assert again["Cache-Control"] == "max-age=60"
        assert one.ask("/small.txt", f"If-None-Match: {answer['ETag']}\r\n").status == 200
        part = one.ask(
            "/small.txt", f"Accept-Encoding: {coding}\r\nRange: bytes=-3\r\nIf-Range: {answer['ETag']}\r\n"
        )
        assert (part.status, part.body) == (206, (suffix * 10)[-3:])
        assert part["Content-Encoding"] == coding
        head = one.ask("/small.txt", f"Accept-Encoding: {coding}\r\n", "HEAD")
        assert int(head["Content-Length"]) == len(answer.body)
    assert len(tags) == 4
    assert one.ask("/small.txt", "Accept-Encoding: br, zstd, gzip\r\n")["Content-Encoding"] == "br"
    packed = one.ask("/small.txt.gz", "Accept-Encoding: gzip, br\r\n")
    assert (packed["Content-Type"], packed.body) == ("application/gzip", b"gz" * 10)
    assert "Content-Encoding" not in packed
    assert "Vary" not in packed
    assert "Vary" not in one.ask("/folder/file.txt", "Accept-Encoding: br\r\n")


def test_variants_of_an_index_and_of_large_files(root: Path, serving: Callable[..., Serving]) -> None:
    (root / "index.html").write_bytes(b"index")
    pack(root, "index.html")
    (root / "big.bin.br").write_bytes(BIG[::-1])
    os.utime(root / "big.bin", (OLD, OLD))
    one = serving()
    assert one.ask("/", "Accept-Encoding: br\r\n").body == b"br" * 10
    assert one.ask("/big.bin", "Accept-Encoding: br\r\n").body == BIG[::-1]
    assert one.ask("/big.bin").body == BIG


@pytest.mark.parametrize(("later", "used"), [(0, True), (-1.9, True), (-2.1, False), (100, True)])
def test_an_old_variant_is_not_used(
    root: Path, serving: Callable[..., Serving], later: float, used: bool
) -> None:
    pack(root, "small.txt", later=later)
    assert ("Content-Encoding" in serving().ask("/small.txt", "Accept-Encoding: gzip\r\n")) is used


def test_variants_that_come_and_go(root: Path, serving: Callable[..., Serving], calm: None) -> None:
    one = serving(precompressed=("gzip",))

    def coding() -> bytes:
        bodies = {one.ask("/small.txt", "Accept-Encoding: gzip, br\r\n").body for _ in range(3)}
        assert len(bodies) == 1
        return bodies.pop()

    pack(root, "small.txt")
    (root / "small.txt.gz").unlink()
    assert coding() == SMALL
    tick(root)
    (root / "small.txt.gz").write_bytes(b"first")
    assert coding() == b"first"
    tick(root / "small.txt.gz")
    (root / "small.txt.gz").write_bytes(b"second")
    assert coding() == b"second"
    os.utime(root / "small.txt.gz", (OLD - 100, OLD - 100))
    assert coding() == SMALL
    tick(root / "small.txt.gz")
    (root / "small.txt.gz").write_bytes(b"third")
    assert coding() == b"third"
    tick(root)
    (root / "small.txt.gz").unlink()
    (root / "small.txt.gz").mkdir()
    assert coding() == SMALL
    (root / "small.txt.gz").rmdir()
    (root / "small.txt.gz").symlink_to("../secret")
    assert coding() == SMALL


# ---- ranges ----


@pytest.mark.parametrize("name", ["small.txt", "big.bin"])
def test_one_range(serving: Callable[..., Serving], name: str) -> None:
    content = {"small.txt": SMALL, "big.bin": BIG}[name]
    one = serving()
    whole = one.ask(f"/{name}")
    assert whole["Accept-Ranges"] == "bytes"
    size = len(content)
    for asked, first, end in (
        (f"{size - 3}-", size - 3, size),
        ("0-0", 0, 1),
        ("-4", size - 4, size),
        ("3-99", 3, 100),
    ):
        answer = one.ask(f"/{name}", f"Range: bytes={asked}\r\n")
        assert (answer.status, answer.body) == (206, content[first:end])
        assert answer["Content-Range"] == f"bytes {first}-{end - 1}/{size}"
        assert (answer["ETag"], answer["Content-Type"]) == (whole["ETag"], whole["Content-Type"])
    none = one.ask(f"/{name}", f"Range: bytes={size}-\r\n")
    assert (none.status, none["Content-Range"], none.body) == (
        416,
        f"bytes */{size}",
        f"{STATUS[416]}\n".encode(),
    )
    head = one.ask(f"/{name}", "Range: bytes=0-0\r\n", "HEAD")
    assert (head.status, head["Content-Length"]) == (200, str(size))


@pytest.mark.parametrize("name", ["small.txt", "big.bin"])
def test_several_ranges(serving: Callable[..., Serving], name: str) -> None:
    content = {"small.txt": SMALL, "big.bin": BIG}[name]
    one = serving()
    asked = [(0, 1), (5, 20), (len(content) - 50, len(content)), (3, 4)]
    if name == "big.bin":
        asked.append((1000, 900_000))
    spec = ",".join([f"{first}-{end - 1}" for first, end in asked])
    answer = one.ask(f"/{name}", f"Range: bytes={spec}\r\n")
    assert answer.status == 206
    match = re.fullmatch(r"multipart/byteranges; boundary=([0-9a-f]{24})", answer["Content-Type"])
    assert match
    pieces = answer.body.split(b"\r\n--" + match[1].encode())
    assert (pieces[0], pieces[-1]) == (b"", b"--\r\n")
    for piece, (first, end) in zip(pieces[1:-1], asked, strict=True):
        head, _, body = piece.partition(b"\r\n\r\n")
        assert body == content[first:end]
        assert head.split(b"\r\n")[1:] == [
            b"Content-Type: " + one.ask(f"/{name}", "", "HEAD")["Content-Type"].encode(),
            b"Content-Range: bytes %d-%d/%d" % (first, end - 1, len(content)),
        ]


def test_an_attack_by_ranges_costs_no_more_than_the_whole(serving: Callable[..., Serving]) -> None:
    one = serving()
    for attack in (
        ",".join(["0-"] * 1000),
        ",".join([f"5-{number}" for number in range(1300)]),
        ",".join([f"{number}-{number}" for number in range(0, 4000, 2)]),
    ):
        answer = one.ask("/big.bin", f"Range: bytes={attack}\r\n")
        assert (answer.status, len(answer.body)) == (200, len(BIG))


def test_a_client_that_reads_slowly_gets_all_parts(serving: Callable[..., Serving], root: Path) -> None:
    large = os.urandom(1 << 20) * 8
    (root / "large.bin").write_bytes(large)
    one = serving()
    half = len(large) // 2
    one.sock.sendall(
        f"GET /large.bin HTTP/1.1\r\nHost: a.test\r\nRange: bytes={half}-,0-{half - 1}\r\n\r\n".encode()
        + b"GET /small.txt HTTP/1.1\r\nHost: a.test\r\n\r\n"
    )
    body = one.client.answer().body
    assert large[half:] in body
    assert large[:half] in body
    assert one.client.answer().body == SMALL


# ---- what is configured ----


def test_settings(root: Path, serving: Callable[..., Serving]) -> None:
    (root / "a.gpx").write_bytes(b"<gpx/>")
    (root / "folder/default.htm").write_bytes(b"default")
    (root / "link").symlink_to("small.txt")
    (root / "linkdir").symlink_to("folder")
    one = serving(
        index=("index.html", "default.htm"),
        types={".gpx": "application/x-track"},
        charset="",
        symlinks=False,
        cache_control={"folder/**": "no-store", "*.gpx": "", "*": "no-cache"},
    )
    index = one.ask("/folder/")
    assert (index.body, index["Content-Type"], index["Cache-Control"]) == (
        b"default",
        "text/html",
        "no-store",
    )
    track = one.ask("/a.gpx")
    assert (track["Content-Type"], "Cache-Control" in track) == ("application/x-track", False)
    assert one.ask("/small.txt")["Cache-Control"] == "no-cache"
    for target in ("/link", "/linkdir/", "/linkdir/file.txt", "/linkdir"):
        assert one.ask(target).status == 404
    assert one.ask("/folder/file.txt").status == 200


def test_no_index(root: Path, serving: Callable[..., Serving]) -> None:
    (root / "index.html").write_bytes(b"index")
    assert serving(index=()).ask("/").status == 403


@pytest.mark.parametrize(
    ("error", "status", "logged"),
    [
        (errno.EACCES, 403, False),
        (errno.EPERM, 403, False),
        (errno.ELOOP, 404, False),
        (errno.EMFILE, 503, True),
        (errno.EIO, 503, True),
        (errno.EAGAIN, 503, True),
    ],
)
def test_what_opening_can_say(
    root: Path,
    serving: Callable[..., Serving],
    error: int,
    status: int,
    logged: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (root / "folder/index.html").write_bytes(b"index")
    one = serving(listing=True)

    def fails(_root: Root, _path: bytes) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(Root, "open", fails)
    for target in ("/small.txt", "/folder/"):
        assert one.ask(target).status == status
    log = one.site.log
    assert isinstance(log, ListLog)
    assert log.events() == ["file not opened"] * 2 * logged
    assert one.site.stats.errors == 2 * logged


@pytest.mark.parametrize(
    "target",
    ["/none", "/folder", "/folder/", "/small.txt/", "/.hidden", "/%00", "/small.txt", "/big.bin", "/e/"],
)
@pytest.mark.parametrize("listing", [False, True])
def test_clients_that_are_gone_before_their_answer(
    root: Path, serving: Callable[..., Serving], target: str, listing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "e").mkdir()
    one = serving(listing=listing)

    def gone(*_: object) -> None:
        raise ClientGone

    for name in ("send_whole", "send_last", "send_parts"):
        monkeypatch.setattr(Stream, name, gone)
    for headers in ("", "Range: bytes=0-0,2-2\r\n", "Range: bytes=9999999-\r\n", 'If-Match: "x"\r\n'):
        with one.servers[0].connect() as sock:
            sock.sendall(f"GET {target} HTTP/1.1\r\nHost: a.test\r\n{headers}\r\n".encode())
            assert not sock.recv(100)
    assert one.site.stats.gone == 4
    assert one.site.stats.errors == 0
    assert one.servers[0].is_alive()


@pytest.mark.parametrize("seconds", [-5, 0, 2**33, 2**40])
def test_odd_times(root: Path, serving: Callable[..., Serving], seconds: int) -> None:
    try:
        os.utime(root / "small.txt", (seconds, seconds))
    except (OSError, OverflowError):
        pytest.skip("the file system can't hold such a time")
    one = serving()
    before = int(time.time())
    answer = one.ask("/small.txt")
    assert answer.status == 200
    modified = answer["Last-Modified"]
    if seconds <= 0:
        assert modified == "Thu, 01 Jan 1970 00:00:00 GMT"
    else:
        assert str(time.gmtime(before).tm_year) in modified  # not in the future
    assert one.ask("/small.txt", f"If-Modified-Since: {modified}\r\n").status == 304


@pytest.mark.parametrize(("name", "content"), [("small.txt", SMALL), ("big.bin", BIG)])
def test_one_answer_in_all_ways(
    serving: Callable[..., Serving], calm: None, name: str, content: bytes
) -> None:
    """New, kept, remembered, to 1.0, before a close: the same head, but for Connection and Date."""
    one = serving()
    heads = set()
    for headers in ["", "", "", "", "X: y\r\n", "Connection: close\r\n"]:
        answer = one.ask(f"/{name}", headers)
        assert answer.body == content
        heads.add(
            tuple(sorted([field for field in answer.headers if field[0] not in ("Date", "Connection")]))
        )
    assert one.client.at_end()
    with one.servers[0].connect() as sock:
        sock.sendall(f"GET /{name} HTTP/1.0\r\nHost: a.test\r\n\r\n".encode())
        answer = Client(sock).answer()
        assert answer.body == content
        heads.add(
            tuple(sorted([field for field in answer.headers if field[0] not in ("Date", "Connection")]))
        )
    assert len(heads) == 1
    one.servers[0].wait_closed()
    assert one.site.stats.responses[2] == 7


# ---- listings ----


def test_a_list(root: Path, serving: Callable[..., Serving]) -> None:
    folder = root / "folder"
    for name in ("b10.txt", "B9.txt", "a.txt", "\u00e9.txt", "x y&z?.txt", "javascript:alert(1)", "50%.txt"):
        (folder / name).write_bytes(b"x" * 2000)
    (folder / "<script>alert('1')").mkdir()
    (folder / "zfolder").mkdir()
    (folder / os.fsdecode(b"\xff\xfe.txt")).write_bytes(b"")
    (folder / ".hidden").write_bytes(b"")
    (folder / "out").symlink_to("../../secret")
    (folder / "in").symlink_to("../small.txt")
    (folder / "broken").symlink_to("none")
    os.mkfifo(folder / "fifo")
    one = serving(listing=True)
    answer = one.ask("/folder/")
    page = answer.body.decode()
    assert answer["Content-Type"] == "text/html; charset=utf-8"
    assert answer["Content-Security-Policy"] == "default-src 'none'; style-src 'unsafe-inline'"
    links = re.findall(r'<td><a href="([^"]*)">', page)
    assert links == [
        "../",
        "%3Cscript%3Ealert%28%271%27%29/",
        "zfolder/",
        "50%25.txt",
        "a.txt",
        "B9.txt",
        "b10.txt",
        "file.txt",
        "in",
        "javascript%3Aalert%281%29",
        "x%20y%26z%3F.txt",
        "%C3%A9.txt",
        "%FF%FE.txt",
    ]
    assert "<script" not in page
    assert "2 folders, 10 files, 13.8 KiB" in page
    assert ">2.0 KiB<" in page
    for link in links[2:]:
        assert one.ask(f"/folder/{link}").status == (403 if link.endswith("/") else 200) or link == "zfolder/"
    assert one.ask("/folder/", "", "HEAD")["Content-Length"] == str(len(answer.body))
    assert '<a href="../">/</a><a href="./">folder/</a>' in page
    assert "../" not in re.findall(r'<td><a href="([^"]*)">', one.ask("/").body.decode())


def test_a_list_is_bounded(
    root: Path, serving: Callable[..., Serving], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MAX_ENTRIES", 2)
    page = serving(listing=True).ask("/").body.decode()
    assert "There are more: only 2 are shown." in page
    assert len(re.findall("<tr", page)) == 3


def test_sizes() -> None:
    assert [listing._size(count) for count in (0, 1023, 1024, 1536, 1048575, 1048576, 2**50, 2**70)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 KiB",
        "1.0 MiB",
        "1.0 MiB",
        "1.0 PiB",
        "1048576.0 PiB",
    ]


def test_a_list_where_an_index_is(root: Path, serving: Callable[..., Serving]) -> None:
    (root / "index.html").write_bytes(b"index")
    one = serving(listing=True)
    assert one.ask("/").body == b"index"
    assert one.ask("/small.txt/").status == 404
    assert one.ask("/none/").status == 404
