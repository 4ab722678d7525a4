"""The kind cgi with real programs, started by a real exec service: RFC 3875, limits, and programs that do wrong.

Nobody changes uid here: the programs run as who runs the tests (tests/integration/test_cgi_tree.py has the whole tree,
with Perl's CGI module, gitweb and git).
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

from pyttpd.config.kinds import CgiOptions, Mount
from pyttpd.config.shares import PoolSettings

from pyttpd_vhost.execution import reaper
from pyttpd_vhost.execution.checks import Identity
from pyttpd_vhost.kinds.base import Kind
from pyttpd_vhost.kinds.cgi import CgiKind
from pyttpd_vhost.mounts import Mounts
from pyttpd_vhost.site import Site

from .conftest import HOST, Answer, Client, Serve, Server, descriptors
from .programs import Running, alive, wait_for
from .test_execution import running

__all__ = ["running"]

PATIENCE = 20.0
#: As root the tests' own uid would be refused; what is checked here is the rest.
UID = os.getuid() or 1000
WHO = Identity.of(UID, UID, os.stat_result((0, 0, 0, 0, os.getuid(), os.getgid(), 0, 0, 0, 0)))
LARGE = 20_000_000


class Cgi:
    """A folder of programs, and what serves them."""

    def __init__(self, folder: Path, serve: Serve, running: Running) -> None:
        self.folder = folder
        self._serve = serve
        self.running = running
        self.server: Server

    def write(self, name: str, script: str, *, mode: int = 0o755) -> Path:
        path = self.folder / name
        path.write_text(script if script.startswith("#!") else f"#!/bin/sh\n{script}\n")
        path.chmod(mode)
        return path

    def start(
        self, *, share: dict[str, Any] | None = None, http: Any = None, mount: str = "/", **options: Any
    ) -> Server:
        made = CgiOptions(**{"root": str(self.folder), **options})

        def kind(site: Site) -> Kind:
            site.programs = self.running.client
            where = Mount(mount, made)
            programs = CgiKind(made, site, 0, where.prefix, who=WHO)
            return programs if mount == "/" else Mounts([(where, programs)], site)

        self.server = self._serve(kind=kind, share=share, **(http or {}))
        return self.server

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        headers: str = "",
        body: bytes | None = None,
        sock: Any = None,
    ) -> Answer:
        with self.server.connect() if sock is None else sock as sock:
            length = "" if body is None else f"Content-Length: {len(body)}\r\n"
            sock.sendall(
                f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n{length}{headers}\r\n".encode() + (body or b"")
            )
            return Client(sock).answer(method)

    @property
    def log(self) -> list[tuple[str, str, dict[str, object]]]:
        return self.server.site.log.lines  # type: ignore[attr-defined, no-any-return]

    def failures(self) -> list[tuple[object, object]]:
        return [
            (fields["reason"], fields["detail"])
            for _, event, fields in self.log
            if event == "application failed"
        ]

    def printed(self) -> list[str]:
        return [str(fields["line"]) for _, event, fields in self.log if event == "output"]


@pytest.fixture
def cgi(tmp_path: Path, serve: Serve, running: Running) -> Cgi:
    folder = tmp_path / "cgi"
    folder.mkdir()
    folder.chmod(0o755)
    return Cgi(folder, serve, running)


TEXT = 'printf "Content-Type: text/plain\\r\\n\\r\\n"'


# ---- what a program gets ----


def test_variables(cgi: Cgi) -> None:
    cgi.write("show", f'{TEXT}; pwd; for each in "$0" "$@"; do echo "$each"; done; env')
    cgi.start(env={"GIT_PROJECT_ROOT": "/srv/git"}, share={"env": {"DEBUG": "0"}})
    answer = cgi.ask(
        "/show/a%20b/%C3%BC?x+y%20z",
        headers="X-One: 1\r\nX_Two: 2\r\nProxy: evil\r\nCookie: a=1\r\nCookie: b=2\r\nAuthorization: Basic x\r\n",
    )
    assert answer.status == 200
    lines = answer.body.decode().splitlines()
    script = f"{cgi.folder}/show"
    assert lines[:4] == [str(cgi.folder), script, "x", "y z"]
    found = dict(line.split("=", 1) for line in lines[4:])
    for name in ("PWD", "OLDPWD", "SHLVL", "_", "HOME", "TMPDIR", "LANG", "LC_ALL", "LC_CTYPE", "TZ"):
        found.pop(name, None)
    assert found.pop("SERVER_SOFTWARE").startswith("pyttpd")
    assert found.pop("REMOTE_PORT").isdigit()
    assert found == {
        "PATH": os.environ["PATH"],
        "GIT_PROJECT_ROOT": "/srv/git",
        "DEBUG": "0",
        "GATEWAY_INTERFACE": "CGI/1.1",
        "REQUEST_METHOD": "GET",
        "REQUEST_URI": "/show/a%20b/%C3%BC?x+y%20z",
        "REQUEST_SCHEME": "http",
        "SCRIPT_NAME": "/show",
        "SCRIPT_FILENAME": script,
        "PATH_INFO": "/a b/ü",
        "PATH_TRANSLATED": f"{cgi.folder}/a b/ü",
        "DOCUMENT_ROOT": str(cgi.folder),
        "QUERY_STRING": "x+y%20z",
        "SERVER_NAME": HOST,
        "SERVER_PORT": "80",
        "SERVER_ADDR": "127.0.0.1",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": HOST,
        "HTTP_X_ONE": "1",
        "HTTP_COOKIE": "a=1; b=2",
        "HTTP_AUTHORIZATION": "Basic x",
    }


def test_values_are_data(cgi: Cgi) -> None:
    """Shellshock's, and quotes: a variable's value is one, and a shell script that quotes its own is safe."""
    evil = "() { :; }; echo owned >&2; touch owned; $(touch owned) `touch owned` '\" %s"
    cgi.write("show", f'#!/bin/bash\n{TEXT}; printf "%s" "$HTTP_USER_AGENT"')
    cgi.start()
    answer = cgi.ask("/show", headers=f"User-Agent: {evil}\r\n")
    assert answer.body.decode() == evil
    assert not (cgi.folder / "owned").exists()
    assert cgi.printed() == []


@pytest.mark.parametrize("size", [0, 1, 16384, 16385, LARGE])
@pytest.mark.parametrize("chunked", [False, True])
def test_bodies(cgi: Cgi, size: int, chunked: bool) -> None:
    cgi.write("sum", f'{TEXT}; echo "$CONTENT_LENGTH $CONTENT_TYPE"; sha256sum')
    cgi.start(http={"body_limit": LARGE})
    body = os.urandom(1000) * (size // 1000) + b"x" * (size % 1000)
    with cgi.server.connect() as sock:
        head = f"POST /sum HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: a/b\r\n"
        if chunked:
            sock.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            for at in range(0, size, 100_000):
                piece = body[at : at + 100_000]
                sock.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
            sock.sendall(b"0\r\n\r\n")
        else:
            sock.sendall(f"{head}Content-Length: {size}\r\n\r\n".encode() + body)
        answer = Client(sock).answer()
    assert answer.body.decode().splitlines()[0] == f"{size} a/b"
    assert answer.body.decode().split()[-2] == hashlib.sha256(body).hexdigest()


def test_both_directions_at_once(cgi: Cgi) -> None:
    """It writes before it has read, and neither side waits for the other; nor is it held in memory."""
    cgi.write("echo", f"{TEXT}; exec cat")
    cgi.start(http={"body_limit": LARGE})
    body = os.urandom(100_000)
    total = LARGE // len(body)
    received = 0
    with cgi.server.connect() as sock:
        sock.sendall(
            f"POST /echo HTTP/1.0\r\nHost: {HOST}\r\nContent-Length: {total * len(body)}\r\n\r\n".encode()
        )
        sock.setblocking(False)
        rest = memoryview(body * total)
        data = b""
        end = time.monotonic() + PATIENCE * 3
        while time.monotonic() < end:
            try:
                data = sock.recv(1 << 20)
                if not data:
                    break
                received += len(data)
            except BlockingIOError:
                pass
            try:
                rest = rest[sock.send(rest[: 1 << 20]) :] if rest else rest
            except BlockingIOError:
                time.sleep(0.001)
    assert received > total * len(body)
    assert not rest


def test_a_program_that_ignores_its_body(cgi: Cgi) -> None:
    cgi.write("ignore", f"exec <&-; {TEXT}; echo ok")
    cgi.start(http={"body_limit": LARGE})
    with cgi.server.connect() as sock:
        sock.sendall(f"POST /ignore HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {LARGE}\r\n\r\n".encode())
        sock.sendall(bytes(300_000))
        answer = Client(sock).answer()
        assert (answer.status, answer.body) == (200, b"ok\n")


def test_keep_alive_and_head(cgi: Cgi) -> None:
    cgi.write("ok", f"{TEXT}; echo $REQUEST_METHOD")
    cgi.start()
    with cgi.server.connect() as sock:
        client = Client(sock)
        for method in ("GET", "HEAD", "POST", "DELETE", "GET"):
            sock.sendall(f"{method} /ok HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            answer = client.answer(method)
            assert (answer.status, answer.body) == (200, b"" if method == "HEAD" else f"{method}\n".encode())


# ---- what it may answer ----


def test_documents_and_redirects(cgi: Cgi) -> None:
    cgi.write(
        "status", 'printf "Status: 418 Teapot\\nContent-Type: text/plain\\nX-A: b\\n\\nshort and stout"'
    )
    cgi.write("client", 'printf "Location: https://a.example/x\\n\\n"')
    cgi.write(
        "document", 'printf "Location: /elsewhere\\nStatus: 303 See\\nContent-Type: a/b\\n\\nover there"'
    )
    cgi.write("local", 'cat >/dev/null; printf "Location: /show/info?q=%s\\n\\n" "$QUERY_STRING"')
    cgi.write(
        "show", f'{TEXT}; echo "$REQUEST_METHOD $PATH_INFO $QUERY_STRING $CONTENT_LENGTH $HTTP_X_A"; cat'
    )
    cgi.write("loop", 'printf "Location: /loop\\n\\n"')
    cgi.write("length", 'printf "Content-Type: a/b\\nContent-Length: 5\\n\\nhello"')
    cgi.write("none", 'printf "Status: 204 No Content\\n\\n"')
    cgi.start(index=("status",))
    answer = cgi.ask("/status")
    assert (answer.status, answer["X-A"], answer.body) == (418, "b", b"short and stout")
    answer = cgi.ask("/client")
    assert (answer.status, answer["Location"], answer.body) == (302, "https://a.example/x", b"")
    answer = cgi.ask("/document")
    assert (answer.status, answer["Location"], answer.body) == (303, "/elsewhere", b"over there")
    assert cgi.ask("/local?1", headers="X-A: kept\r\n").body == b"GET /info q=1  kept\n"
    assert cgi.ask("/local?1", method="POST", body=b"body").body == b"GET /info q=1  \n"
    assert cgi.ask("/local", method="HEAD").status == 200
    assert cgi.ask("/loop").status == 502
    answer = cgi.ask("/length")
    assert (answer["Content-Length"], answer.body) == ("5", b"hello")
    assert cgi.ask("/none").status == 204
    assert cgi.ask("/").status == 418
    assert [reason for reason, _ in cgi.failures()] == ["malformed"]


def test_options_of_the_server(cgi: Cgi) -> None:
    cgi.start()
    assert cgi.ask("*", method="OPTIONS").status == 204


def test_a_folder_gets_its_slash(cgi: Cgi) -> None:
    (cgi.folder / "sub dir").mkdir()
    (cgi.folder / "sub dir").chmod(0o755)
    cgi.write("sub dir/index", f"{TEXT}; echo $SCRIPT_NAME")
    cgi.start(index=("index",))
    answer = cgi.ask("/sub%20dir?a=b")
    assert (answer.status, answer["Location"]) == (301, "/sub%20dir/?a=b")
    assert cgi.ask("/sub%20dir/").body == b"/sub dir/index\n"


def test_a_folder_below_a_mount_gets_its_slash(cgi: Cgi) -> None:
    """Also where the mount's own path can't stand in a header as it is."""
    (cgi.folder / "sub").mkdir(0o755)
    cgi.write("sub/index", f"{TEXT}; echo $SCRIPT_NAME")
    cgi.start(mount="/größe", index=("index",))
    for path, location in (
        ("/gr%C3%B6%C3%9Fe", "/gr%C3%B6%C3%9Fe/"),
        ("/gr%C3%B6%C3%9Fe/sub?a", "/gr%C3%B6%C3%9Fe/sub/?a"),
    ):
        answer = cgi.ask(path)
        assert (answer.status, answer["Location"]) == (301, location)
    assert cgi.ask("/gr%C3%B6%C3%9Fe/sub/").body == "/größe/sub/index\n".encode()


# ---- what isn't run ----


def test_a_folder_that_is_gone(cgi: Cgi) -> None:
    """The operator's fault: told in the log, answered, and over as soon as the folder is back."""
    cgi.write("show", f"{TEXT}; echo here")
    cgi.start()
    cgi.folder.rename(cgi.folder.with_name("moved"))
    assert cgi.ask("/show").status == 503
    assert cgi.failures() == [("full", f"{cgi.folder}: No such file or directory")]
    cgi.folder.with_name("moved").rename(cgi.folder)
    assert cgi.ask("/show").body == b"here\n"


def test_refused(cgi: Cgi) -> None:
    cgi.write("source.pl", "secret", mode=0o644)
    cgi.write("loose", "secret", mode=0o757)
    cgi.write("setuid", "secret", mode=0o4755)
    cgi.write("nph-raw", "secret")
    cgi.write("broken", "#!/no/such/interpreter\nsecret")
    (cgi.folder / "link").symlink_to("/bin/sh")
    cgi.start()
    for path, status in (
        ("/source.pl", 403),
        ("/loose", 403),
        ("/setuid", 403),
        ("/nph-raw", 403),
        ("/broken", 503),
        ("/link", 404),
        ("/none", 404),
        ("/", 404),
        ("/..%2f", 400),
        ("/source.pl/%00", 400),
    ):
        answer = cgi.ask(path)
        assert (answer.status, b"secret" in answer.body) == (status, False), path
    details = [str(detail).replace(f"{cgi.folder}/", "") for _, detail in cgi.failures()]
    assert [reason for reason, _ in cgi.failures()] == ["refused"] * 4 + ["unreachable"]
    assert details == [
        f"executable: source.pl is not executable by uid {UID}, gid {UID} (mode 0644): chmod +x",
        "writable-by-others: loose is writable by everybody (mode 0757): chmod o-w",
        "set-uid: setuid is set-uid (mode 4755): chmod u-s",
        "nph: nph-raw is a script that parses no headers: not served here",
        "broken was not run: exec: No such file or directory",
    ]


def test_handlers(cgi: Cgi) -> None:
    cgi.write("page.sh", f'{TEXT}; echo "$0 $# $REDIRECT_STATUS"', mode=0o644)
    cgi.start(handlers={".sh": "/bin/sh"})
    assert cgi.ask("/page.sh?a+b").body.decode() == f"{cgi.folder}/page.sh 0 200\n"


# ---- programs that do wrong ----

PERL = "#!/usr/bin/perl\n"
#: Script, status, reason in log and metric, text in the log.
BAD = {
    "nothing": ("true", 502, "empty", "it ended without an answer"),
    "nothing-and-a-status": ("exit 3", 502, "empty", "it ended without an answer (exit status 3)"),
    "only-body": ("echo hello", 502, "malformed", "its head has no end"),
    "no-colon": ('printf "hello\\n\\nbody"', 502, "malformed", "not a header field"),
    "half-a-head": ('printf "Content-Type: text/plain\\n"', 502, "malformed", "its head has no end"),
    "no-type": ('printf "X-A: b\\n\\nbody"', 502, "malformed", "neither Content-Type nor"),
    "bad-status": ('printf "Status: 99\\n\\n"', 502, "malformed", "not a status"),
    "informational": ('printf "Status: 101 Switching\\n\\n"', 502, "malformed", "not a status"),
    "bad-name": ('printf "Content-Type: a/b\\nX A: b\\n\\n"', 502, "malformed", "not a header name"),
    "injected": ('printf "Content-Type: a/b\\nX-A: b\\rX-B: c\\n\\n"', 502, "malformed", "not a value"),
    "nul": ('printf "Content-Type: a/b\\nX-A: \\0\\n\\n"', 502, "malformed", "not a value"),
    "folded": ('printf "Content-Type: a/b\\nX-A: b\\n c\\n\\n"', 502, "malformed", "not a header"),
    "framing": (
        'printf "Content-Type: a/b\\nTransfer-Encoding: chunked\\n\\n"',
        *(502, "malformed", "the header Transfer-Encoding is the server's"),
    ),
    "two-lengths": (
        'printf "Content-Type: a/b\\nContent-Length: 1\\nContent-Length: 2\\n\\nx"',
        *(502, "malformed", "a second Content-Length"),
    ),
    "endless-head": ('while :; do echo "X-A: b"; done', 502, "head-too-large", "a head of more than"),
    "long-line": ('printf "X-A: "; exec yes', 502, "head-too-large", "a head of more than"),
    "signal": ("kill -SEGV $$", 502, "died", "ended by signal SIGSEGV"),
    "signal-in-head": (
        'printf "Content-Type: text/plain\\n"; kill -KILL $$',
        *(502, "died", "ended by signal SIGKILL"),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_programs(cgi: Cgi, name: str) -> None:
    script, status, reason, text = BAD[name]
    cgi.write("bad", script)
    cgi.write("good", f"{TEXT}; echo fine")
    cgi.start()
    with cgi.server.connect() as sock:
        client = Client(sock)
        for path, expected in (("/bad", status), ("/good", 200)):
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            assert client.answer().status == expected
    ((found, detail),) = cgi.failures()
    assert found == reason
    assert str(detail).startswith(text)
    stats = cgi.server.site.stats
    assert stats.errors == 1
    assert sum(stats.faults.values()) == 1


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ('printf "Content-Type: a/b\\nContent-Length: 10\\n\\nhello"; cat /dev/null', "length"),
        ('printf "Content-Type: a/b\\n\\nhello"; sleep 0.2; kill -9 $$', "died"),
        ('printf "Content-Type: a/b\\n\\n"; exec yes', "output-too-large"),
    ],
)
def test_answers_that_are_cut(cgi: Cgi, script: str, reason: str) -> None:
    """What has begun can't be taken back: the client sees that it isn't whole."""
    cgi.write("bad", script)
    cgi.start(max_output=1_000_000)
    with cgi.server.connect() as sock:
        sock.sendall(f"GET /bad HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
        data = b""
        while piece := sock.recv(65536):
            data += piece
    if data.startswith(b"HTTP/1.1 502 "):
        # on a busy machine nothing was sent before the end was there: then the answer can still say so
        assert reason != "output-too-large"
    else:
        assert data.startswith(b"HTTP/1.1 200")
        assert not data.endswith(b"0\r\n\r\n")
    assert len(data) < 1_100_000
    assert [found for found, _ in cgi.failures()] == [reason]


def test_more_than_its_length_is_cut(cgi: Cgi) -> None:
    cgi.write(
        "bad",
        'printf "Content-Type: a/b\\nContent-Length: 5\\n\\nhello"; sleep 0.1; echo injected; sleep 0.1',
    )
    cgi.start()
    with cgi.server.connect() as sock:
        sock.sendall(f"GET /bad HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
        data = b""
        while piece := sock.recv(65536):
            data += piece
    assert data.endswith(b"\r\n\r\nhello") or data.startswith(b"HTTP/1.1 502 ")
    assert [found for found, _ in cgi.failures()] == ["length"]


def test_standard_error_goes_to_the_log_as_far_as_it_goes(cgi: Cgi) -> None:
    cgi.write("words", f"echo first >&2; {TEXT}; echo ok; printf 'last\\033[2J' >&2")
    cgi.write(
        "flood", f"i=0; while [ $i -lt 3000 ]; do echo {'x' * 100} >&2; i=$((i+1)); done; {TEXT}; echo ok"
    )
    cgi.start()
    assert cgi.ask("/words").body == b"ok\n"
    wait_for(lambda: len(cgi.printed()) == 2, "the last words")
    assert cgi.printed() == ["/: first", "/: last\x1b[2J"]
    assert cgi.ask("/flood").body == b"ok\n"
    assert sum(map(len, cgi.printed())) < 70_000
    assert [fields for _, event, fields in cgi.log if "more than is logged" in event]


# ---- limits ----


@pytest.mark.parametrize(
    ("script", "options", "reason", "text", "status"),
    [
        ("sleep 60", {"timeout": 0.3}, "timeout", "it neither said nor took", 504),
        ("while :; do :; done", {"max_cpu": 1}, "timeout", "it has used up max_cpu, 1 s", 504),
        ("sleep 60", {"max_time": 0.3}, "timeout", "not done within max_time", 504),
    ],
)
def test_limits_of_time(
    cgi: Cgi, script: str, options: dict[str, Any], reason: str, text: str, status: int
) -> None:
    cgi.write("slow", script)
    cgi.start(**options)
    assert cgi.ask("/slow").status == status
    ((found, detail),) = cgi.failures()
    assert found == reason
    assert str(detail).startswith(text)


def test_the_pools_limit_of_a_request_counts_too(cgi: Cgi) -> None:
    cgi.write("slow", 'while :; do printf "X-A: b\\n"; sleep 0.1; done')
    cgi.start(share={"pool": PoolSettings(request_timeout=0.5)})
    assert cgi.ask("/slow").status == 504


@pytest.mark.program("perl")
def test_limit_of_memory(cgi: Cgi) -> None:
    cgi.write("eat", f'{PERL}print "Content-Type: a/b\\n\\n"; my $x = "x" x 1_000_000_000; print length $x;')
    cgi.start(max_memory=200_000_000)
    assert b"1000000000" not in cgi.ask("/eat").body
    assert any("ut of memory" in line for line in cgi.printed())


@pytest.mark.root
@pytest.mark.program("perl")
def test_limit_of_processes(cgi: Cgi) -> None:
    """Root has none, so the program becomes somebody else first."""
    cgi.write(
        "fork",
        f'{PERL}$< = $> = 54321; print "Content-Type: a/b\\n\\n"; my $n = 0;'
        "while ($n < 50) { my $pid = fork(); last unless defined $pid;"
        "if (!$pid) { close STDOUT; sleep 60; exit } $n++ } print $n;",
    )
    cgi.start(max_processes=10)
    with cgi.server.connect() as sock:
        sock.sendall(f"GET /fork HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        answer = Client(sock).answer()
    assert 0 < int(answer.body) < 10


# ---- the end ----


def pids(path: Path, count: int) -> list[int]:
    def found() -> list[int] | None:
        listed = [int(word) for word in path.read_text().split()] if path.exists() else []
        return listed if len(listed) == count else None

    listed: list[int] = wait_for(found, "the program says its pids")
    return listed


def all_gone(listed: list[int]) -> None:
    wait_for(lambda: not any(alive(pid) for pid in listed), "all of it ends")


def test_nothing_is_left_running(cgi: Cgi, tmp_path: Path) -> None:
    """Daemons: in the background, and in a session of their own, with and without the output's descriptor."""
    noted = tmp_path / "pids"
    cgi.write(
        "daemons",
        f"{TEXT}; echo ok\n"
        f"(echo $$ >/dev/null; sleep 300 & echo $! >> {noted}) >/dev/null 2>&1\n"
        f"setsid sh -c 'echo $$ >> {noted}; exec sleep 300' >/dev/null 2>&1 &\n"
        f"while [ $(wc -l < {noted}) -lt 2 ]; do sleep 0.01; done",
    )
    cgi.start()
    assert cgi.ask("/daemons").body == b"ok\n"
    all_gone(pids(noted, 2))


def test_a_background_job_with_the_output_in_its_hands_doesnt_hold_the_request_for_ever(
    cgi: Cgi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = tmp_path / "pids"
    cgi.running.stop()
    monkeypatch.setattr(reaper, "AFTERWARDS", 0.3)
    cgi.running.start()
    cgi.write("holds", f"{TEXT}; echo ok; sleep 300 & echo $! > {noted}")
    cgi.start()
    began = time.monotonic()
    assert cgi.ask("/holds").body == b"ok\n"
    assert time.monotonic() - began < PATIENCE
    all_gone(pids(noted, 1))


PHASES = {
    "before-the-head": "echo $$ > {noted}; exec sleep 300",
    "in-the-body": TEXT + "; echo some; echo $$ > {noted}; exec sleep 300",
    "while-it-writes": TEXT + "; echo $$ > {noted}; exec yes",
    "with-children": "sleep 300 & echo $! > {noted}; echo $$ >> {noted}; wait",
}


@pytest.mark.parametrize("phase", PHASES)
def test_the_client_leaves(cgi: Cgi, tmp_path: Path, phase: str) -> None:
    noted = tmp_path / "pids"
    cgi.write("long", PHASES[phase].format(noted=noted))
    cgi.start()
    with cgi.server.connect() as sock:
        sock.sendall(f"GET /long HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        listed = pids(noted, 2 if phase == "with-children" else 1)
    all_gone(listed)
    cgi.server.wait_closed()
    assert cgi.failures() == []


def test_the_client_leaves_in_the_middle_of_its_body(cgi: Cgi, tmp_path: Path) -> None:
    noted = tmp_path / "pids"
    cgi.write("long", f"echo $$ > {noted}; exec cat >/dev/null")
    cgi.start(http={"body_limit": LARGE})
    with cgi.server.connect() as sock:
        sock.sendall(
            f"POST /long HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {LARGE}\r\n\r\n".encode()
            + bytes(100_000)
        )
        listed = pids(noted, 1)
    all_gone(listed)
    cgi.server.wait_closed()


def test_the_service_is_killed(cgi: Cgi, tmp_path: Path) -> None:
    """Its programs end with it; whoever waits for one gets an answer, and the next request finds nobody."""
    noted = tmp_path / "pids"
    cgi.write("long", f"echo $$ > {noted}; exec sleep 300")
    cgi.start()
    with cgi.server.connect() as sock:
        sock.sendall(f"GET /long HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        listed = pids(noted, 1)
        cgi.running.kill()
        assert Client(sock).answer().status == 502
    all_gone(listed)
    cgi.running.start()
    cgi.write("ok", f"{TEXT}; echo ok")
    assert cgi.ask("/ok").status == 200


def test_many_at_once_leave_no_descriptor(cgi: Cgi) -> None:
    cgi.write("ok", f"{TEXT}; echo $PATH_INFO")
    cgi.start()
    assert cgi.ask("/ok/").status == 200
    cgi.server.wait_closed()
    before = descriptors()
    for number in range(30):
        assert cgi.ask(f"/ok/{number}").body == f"/{number}\n".encode()
    cgi.server.wait_closed()
    assert descriptors(before) <= before


def test_without_a_service(cgi: Cgi) -> None:
    cgi.write("ok", f"{TEXT}; echo ok")
    cgi.start()
    cgi.server.site.programs = None
    assert cgi.ask("/ok").status == 503
    assert [reason for reason, _ in cgi.failures()] == ["unreachable"]
