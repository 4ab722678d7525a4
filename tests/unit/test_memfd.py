"""Sealed memfds: what was announced, whole, and never changed again."""

from __future__ import annotations

import fcntl
import os
import tempfile

import pytest

from pyttpd import memfd
from pyttpd.wire.errors import RemoteProtocolError


@pytest.mark.parametrize("data", [b"", b"{}", bytes(1_000_000)])
def test_what_was_put_in_comes_out(data: bytes) -> None:
    fd = memfd.make("test", data)
    try:
        assert memfd.read(fd, len(data), memfd.digest_of(data)) == data
        assert memfd.read(fd, len(data), memfd.digest_of(data)) == data
    finally:
        os.close(fd)


def test_nobody_can_change_it() -> None:
    fd = memfd.make("test", b"abc")
    try:
        for change in (
            lambda: os.write(fd, b"x"),
            lambda: os.ftruncate(fd, 1),
            lambda: os.ftruncate(fd, 9),
            lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0),
        ):
            with pytest.raises(PermissionError):
                change()
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("size", "digest", "reason"),
    [
        (4, memfd.digest_of(b"abc"), "bad-field"),
        (2, memfd.digest_of(b"ab"), "bad-field"),
        (3, memfd.digest_of(b"abd"), "bad-field"),
        (3, bytes(32), "bad-field"),
        (memfd.MAX_SIZE + 1, bytes(32), "oversized"),
    ],
)
def test_what_is_not_as_announced_is_refused(size: int, digest: bytes, reason: str) -> None:
    fd = memfd.make("test", b"abc")
    try:
        with pytest.raises(RemoteProtocolError) as caught:
            memfd.read(fd, size, digest)
        assert caught.value.reason == reason
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "seals", [0, fcntl.F_SEAL_WRITE, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE]
)
def test_one_that_could_still_be_changed_is_refused(seals: int) -> None:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, b"abc")
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        with pytest.raises(RemoteProtocolError) as caught:
            memfd.read(fd, 3, memfd.digest_of(b"abc"))
        assert caught.value.reason == "descriptors"
    finally:
        os.close(fd)


def test_other_files_are_refused() -> None:
    read, write = os.pipe()
    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        file.write(b"abc")
        file.flush()
        try:
            for fd in (read, file.fileno()):
                with pytest.raises(RemoteProtocolError) as caught:
                    memfd.read(fd, 3, memfd.digest_of(b"abc"))
                assert caught.value.reason == "descriptors"
        finally:
            os.close(read)
            os.close(write)


def test_a_memfd_that_can_not_be_filled_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "no space")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="no space"):
        memfd.make("test", b"abc")
