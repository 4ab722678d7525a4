"""`pyttpd reload`'s side of the admin channel: against a master that answers, one that doesn't, and one that isn't
one.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyttpd import admin, fdpass, memfd, peercred
from pyttpd.rendezvous import SOCKET_NAME
from pyttpd.wire.messages import (
    MAX_FRAME,
    VERSION,
    Answer,
    Command,
    Goodbye,
    Hello,
    Told,
    Welcome,
    decode,
    encode,
)

Speak = Callable[[socket.socket], None]


def answer(sock: socket.socket, outcome: str, text: bytes, *, size: int | None = None) -> None:
    fd = memfd.make("test", text)
    frame = encode(Answer(outcome, len(text) if size is None else size, memfd.digest_of(text)))
    fdpass.send_fd(sock, frame, fd)
    os.close(fd)


def hear(sock: socket.socket) -> object:
    return decode(sock.recv(MAX_FRAME))


def well(sock: socket.socket) -> None:
    assert hear(sock) == Hello("operator", "operator")
    fdpass.send(sock, encode(Welcome(VERSION, 0)))
    assert hear(sock) == Command("reload", "blog")
    fdpass.send(sock, encode(Told("reading\x1b[31m".replace("\x1b", "?"))))
    answer(sock, "done", "two\nlines\x1b[31m of r\u00e9sum\u00e9".encode())


def refuses(sock: socket.socket) -> None:
    hear(sock)
    fdpass.send(sock, encode(Welcome(VERSION, 0)))
    hear(sock)
    answer(sock, "failed", b"no")


def closes(sock: socket.socket) -> None:
    hear(sock)


def speaks_another_version(sock: socket.socket) -> None:
    hear(sock)
    fdpass.send(sock, encode(Welcome(9, 0)))


def leaves(sock: socket.socket) -> None:
    hear(sock)
    fdpass.send(sock, encode(Welcome(VERSION, 0)))
    fdpass.send(sock, encode(Goodbye("leaving")))


def talks_nonsense(sock: socket.socket) -> None:
    hear(sock)
    sock.send(b"HTTP/1.1 200 OK")


def lies(sock: socket.socket) -> None:
    hear(sock)
    fdpass.send(sock, encode(Welcome(VERSION, 0)))
    hear(sock)
    answer(sock, "done", b"short", size=10_000)


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Callable[[Speak], str]]:
    """Start a master that speaks as told; return the runtime_dir where it is."""
    (tmp_path / "admin").mkdir()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"{tmp_path}/admin/sock")
    listener.listen(1)
    threads = []

    def started(speak: Speak) -> str:
        def run() -> None:
            sock, _ = listener.accept()
            with sock:
                speak(sock)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return str(tmp_path)

    yield started
    for thread in threads:
        thread.join()
    listener.close()


@pytest.mark.parametrize(
    ("speak", "status", "out", "err"),
    [
        (well, 0, "two\nlines[31m of r\u00e9sum\u00e9\n", "reading?[31m\n"),
        (refuses, 1, "", "no\n"),
        (closes, 3, "", "you may not"),
        (leaves, 3, "", "master has closed the channel"),
        (speaks_another_version, 3, "", "master speaks version 9 of the protocol, this program 1 to 2"),
        (talks_nonsense, 3, "", "truncated"),
        (lies, 3, "", "another size"),
    ],
)
def test_what_comes_of_it(
    master: Callable[[Speak], str],
    capsys: pytest.CaptureFixture[str],
    speak: Speak,
    status: int,
    out: str,
    err: str,
) -> None:
    assert admin.main(["reload", "--runtime-dir", master(speak), "blog"]) == status
    said = capsys.readouterr()
    assert said.out == out
    assert err in said.err
    assert "\x1b" not in said.out + said.err


def test_one_that_says_nothing_is_not_waited_for_for_ever(
    master: Callable[[Speak], str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "PATIENCE", 0.1)
    over = threading.Event()
    folder = master(lambda sock: (hear(sock), over.wait(20), None)[2])
    try:
        assert admin.main(["reload", "--quiet", "--runtime-dir", folder]) == 3
    finally:
        over.set()
    assert "master has said nothing for 0.1 s" in capsys.readouterr().err


def test_nobody_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert admin.main(["reload", "--runtime-dir", str(tmp_path)]) == 3
    assert "no admin channel" in capsys.readouterr().err
    (tmp_path / "admin/own").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left:
        left.bind(f"{tmp_path}/admin/own/sock")
    assert admin.main(["reload", "--runtime-dir", str(tmp_path)]) == 3
    assert "Connection refused" in capsys.readouterr().err


@pytest.mark.root
def test_a_stranger_who_has_put_a_socket_there_is_not_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "admin").mkdir(mode=0o777)
    (tmp_path / "admin").chmod(0o777)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with listener:
        listener.bind(f"{tmp_path}/admin/sock")
        os.seteuid(31_999)
        try:
            listener.listen(1)  # whose uid SO_PEERCRED tells is who has called this
        finally:
            os.seteuid(0)
        assert admin.main(["reload", "--runtime-dir", str(tmp_path)]) == 3
    assert "was bound by uid 31999, which is not master" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [[], ["status"], ["reload", "No Name"], ["reload", "--dry-run", "blog"], ["reload", "a", "b"]],
)
def test_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        admin.main(arguments)
    assert ended.value.code == 2


def test_where_an_ordinary_users_tree_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert admin.user_directory("/srv/run") == "/srv/run"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert admin.user_directory() == f"{tmp_path}/pyttpd"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert admin.user_directory() == f"/tmp/pyttpd-{os.geteuid()}"


@pytest.mark.root
def test_what_somebody_else_has_made_is_not_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Anybody can make a folder below /tmp that has the name of an ordinary user's, and answer there."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    folder = tmp_path / "pyttpd"
    (folder / "admin").mkdir(parents=True)
    path = folder / "admin" / SOCKET_NAME
    path.touch()
    for owner, asked in ((4322, False), (4321, True)):
        os.chown(folder, owner, -1)
        try:
            found = admin.find("")
        except admin.Unreachable:
            found = ""
        assert (found == str(path)) is asked


@pytest.mark.root
def test_whose_groups_the_kernel_tells() -> None:
    """All of somebody's groups, and of who has more than can be asked for only the first."""
    for count, told in ((3, 4), (300, 1)):
        before = os.getgroups()
        try:
            os.setgroups(range(50_000, 50_000 + count))
            ours, theirs = socket.socketpair()
        finally:
            os.setgroups(before)
        with ours, theirs:
            found = peercred.groups(theirs)
        assert os.getegid() in found
        assert len(found) == told
