"""CGI and hand-off in a whole tree: Perl with its CGI module, gitweb, git over HTTP, and a program that takes over
connections, three kinds in one vhost. As root the programs run under the tenant's uid and behind its locks.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.tree import ANSWER_WITHIN, ORDINARY_UID, Tree, start

TOP = Path(__file__).resolve().parents[2]
HOST = "tools.localhost"
UID = 20004

TENANT = f"""
[vhost.tools]
hosts = ["{HOST}"]
uid = {UID}
root = "FOLDER"
writable = ["FOLDER/git"]
env = {{ WHOSE = "tenant's" }}
[vhost.tools.http]
body_limit = 50_000_000
[vhost.tools.pool]
max_threads = 8
[[vhost.tools.mount]]
path = "/"
kind = "static"
root = "FOLDER/public"
[[vhost.tools.mount]]
path = "/cgi-bin"
kind = "cgi"
root = "FOLDER/cgi-bin"
[[vhost.tools.mount]]
path = "/git"
kind = "cgi"
script = "/usr/lib/git-core/git-http-backend"
env = {{ GIT_PROJECT_ROOT = "FOLDER/git", GIT_HTTP_EXPORT_ALL = "1", GIT_CONFIG_NOSYSTEM = "1" }}
[[vhost.tools.mount]]
path = "/gitweb"
kind = "cgi"
script = "/usr/share/gitweb/gitweb.cgi"
env = {{ GITWEB_CONFIG = "FOLDER/gitweb.conf", GIT_CONFIG_NOSYSTEM = "1" }}
[[vhost.tools.mount]]
path = "/talk"
kind = "handoff"
command = ["{sys.executable}", "FOLDER/talk.py"]
processes = 2
"""

PERL = r"""#!/usr/bin/perl
use strict; use warnings;
use CGI;
my $q = CGI->new;
if ($q->path_info eq "/moved") { print $q->redirect("https://a.example/"); exit }
if ($q->path_info eq "/here") { print "Location: /cgi-bin/form.pl/there?name=local\n\n"; exit }
print $q->header(-type => "text/plain", -charset => "utf-8", -cookie => $q->cookie("seen", "1"));
print join("|", $q->request_method, $q->script_name, $q->path_info, $q->param("name") // "", $ENV{WHOSE}, $<), "\n";
my $file = $q->upload("file");
if ($file) {
  binmode $file;
  my $size = 0;
  while (read($file, my $piece, 65536)) { $size += length $piece }
  print "$size\n";
}
warn "to the log\n";
"""
LOCKS = """#!/bin/sh
printf 'Content-Type: text/plain\\n\\n'
perl -MIO::Socket::INET -e 'print IO::Socket::INET->new("127.0.0.1:PORT") ? "open" : "shut"; print "\\n"'
cat /etc/shadow >/dev/null 2>&1 && echo readable || echo closed
touch FOLDER/cgi-bin/made >/dev/null 2>&1 && echo written || echo closed
"""
TALK = """
import sys
import pyttpd_handoff

def serve(client):
    with client.makefile() as file:
        line = file.readline()
        while file.readline() not in (b"\\r\\n", b""):
            pass
        body = b"%s %s %s" % (line.split()[1], client.mount.encode(), client.host.encode())
        head = b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body)
        client.sock.sendall(head + body)
        if line.split()[1].endswith(b"/long"):
            client.sock.recv(1)

pyttpd_handoff.serve_threads(serve, threads=4)
"""


def git(*words: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(cwd),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        **{
            f"GIT_{who}_{what}": "x@example.net"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        },
    }
    return subprocess.run(
        ["git", "-c", "init.defaultBranch=main", "-c", "safe.directory=*", *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=check,
    )


@dataclass(frozen=True, slots=True)
class Tools:
    """A tenant's folder, and the tree that serves it."""

    tree: Tree
    folder: Path

    def url(self, path: str) -> str:
        return f"http://{HOST}:{self.tree.port}{path}"

    def git(self, *words: str, cwd: Path) -> str:
        resolve = f"http.curloptResolve={HOST}:{self.tree.port}:127.0.0.1"
        return git("-c", resolve, *words, cwd=cwd).stdout


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(False, id="as-root", marks=pytest.mark.root),
        pytest.param(True, id="ordinary-user"),
    ],
)
def tools(request: pytest.FixtureRequest) -> Iterator[Tools]:
    with serving(ordinary=request.param) as made:
        yield made


@contextlib.contextmanager
def serving(*, ordinary: bool) -> Iterator[Tools]:
    folder = Path(tempfile.mkdtemp(prefix="pyttpd-tools-", dir="/tmp"))
    try:
        for name, content in {
            "public/index.html": "<title>static</title>",
            "cgi-bin/form.pl": PERL,
            "cgi-bin/locks": LOCKS.replace("FOLDER", str(folder)),
            "cgi-bin/loose": PERL,
            "gitweb.conf": f'$projectroot = "{folder}/git";\n',
            "pyttpd_handoff.py": (TOP / "examples/handoff/pyttpd_handoff.py").read_text(),
            "talk.py": TALK,
        }.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(content)
        (folder / "git").mkdir()
        git("init", "-q", "--bare", "project.git", cwd=folder / "git")
        git("config", "http.receivepack", "true", cwd=folder / "git/project.git")
        root = os.geteuid() == 0
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() or path.parent.name == "cgi-bin" else 0o644)
            if root and ordinary:
                os.chown(path, ORDINARY_UID, ORDINARY_UID)
            elif root and path.is_relative_to(folder / "git"):
                os.chown(path, UID, UID)
        (folder / "cgi-bin/loose").chmod(0o777)
        tree = start(tenants=TENANT.replace("FOLDER", str(folder)), hosts=(HOST,), ordinary=ordinary)
        try:
            locks = (folder / "cgi-bin/locks").read_text().replace("PORT", str(tree.port))
            (folder / "cgi-bin/locks").write_text(locks)
            made = Tools(tree, folder)
            tree.wait_for(lambda: len(talkers(made)) == 2 and tree.get(HOST, "/talk").status == 200)
            yield made
            tree.check_and_end()
        finally:
            if tree.process.poll() is None:
                tree.kill()
            shutil.rmtree(tree.folder, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def counted(tree: Tree, name: str, **labels: str) -> float:
    return tree.samples("vhost", "tools").get((name, *sorted({"vhost": "tools", **labels}.items())), 0)


@pytest.mark.program("perl", "/usr/share/gitweb/gitweb.cgi", "/usr/share/perl5/CGI.pm")
def test_perl_with_its_cgi_module(tools: Tools) -> None:
    tree = tools.tree
    answer = tree.get(HOST, "/cgi-bin/form.pl/a/b?name=caf%C3%A9")
    uid = ORDINARY_UID if os.geteuid() == 0 and (tools.folder.stat().st_uid == ORDINARY_UID) else UID
    uid = uid if os.geteuid() == 0 else os.geteuid()
    assert answer.body.decode() == f"GET|/cgi-bin/form.pl|/a/b|café|tenant's|{uid}\n"
    assert (answer.status, answer.headers["set-cookie"]) == (200, "seen=1; path=/")
    body = b"".join(
        [
            b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\nJoe\r\n--x\r\n',
            b'Content-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n',
            bytes(3_000_000),
            b"\r\n--x--\r\n",
        ]
    )
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = tree.request("POST", HOST, "/cgi-bin/form.pl", body, headers)
    assert answer.body.decode() == f"POST|/cgi-bin/form.pl||Joe|tenant's|{uid}\n3000000\n"
    answer = tree.get(HOST, "/cgi-bin/form.pl/moved")
    assert (answer.status, answer.headers["location"]) == (302, "https://a.example/")
    assert tree.get(HOST, "/cgi-bin/form.pl/here").body.startswith(b"GET|/cgi-bin/form.pl|/there|local|")
    tree.wait_for(lambda: "to the log" in tree.log())


def test_behind_the_tenants_locks(tools: Tools) -> None:
    assert tools.tree.get(HOST, "/cgi-bin/locks").body.split() == [b"shut", b"closed", b"closed"] or (
        os.geteuid() == 0 and not (tools.folder / "cgi-bin/made").exists()
    )


def test_refused_with_its_reason(tools: Tools) -> None:
    before = counted(tools.tree, "pyttpd_vhost_backend_errors_total", mount="/cgi-bin", reason="refused")
    assert tools.tree.get(HOST, "/cgi-bin/loose").status == 403
    assert tools.tree.get(HOST, "/cgi-bin/none").status == 404
    tools.tree.wait_for(lambda: "loose is writable by everybody (mode 0777): chmod o-w" in tools.tree.log())
    tools.tree.wait_for(
        lambda: (
            counted(tools.tree, "pyttpd_vhost_backend_errors_total", mount="/cgi-bin", reason="refused")
            == before + 1
        )
    )


@pytest.mark.program("git", "/usr/share/gitweb/gitweb.cgi", "/usr/share/perl5/CGI.pm")
def test_git_over_http_and_gitweb(tools: Tools, tmp_path: Path) -> None:
    work = tmp_path / "work"
    tools.git("clone", "-q", tools.url("/git/project.git"), str(work), cwd=tmp_path)
    (work / "file").write_text("hello\n")
    # larger than http.postBuffer, so it comes in chunks
    (work / "large").write_bytes(os.urandom(4_000_000))
    git("checkout", "-q", "-B", "main", cwd=work)
    git("add", ".", cwd=work)
    git("commit", "-q", "-m", "the first one", cwd=work)
    tools.git("push", "-q", "origin", "main", cwd=work)
    tools.git("clone", "-q", "-b", "main", tools.url("/git/project.git"), "again", cwd=tmp_path)
    assert (tmp_path / "again/large").read_bytes() == (work / "large").read_bytes()
    answer = tools.tree.get(HOST, "/gitweb?p=project.git;a=shortlog;h=refs/heads/main")
    assert answer.status == 200
    assert b"the first one" in answer.body
    assert b"project.git" in tools.tree.get(HOST, "/gitweb/").body


def test_three_kinds_in_one_vhost_and_connections_that_are_handed_over(tools: Tools) -> None:
    tree = tools.tree
    assert tree.get(HOST).body == b"<title>static</title>"
    for path in ("/talk", "/talk/a?b"):
        answer = tree.get(HOST, path)
        assert (answer.status, answer.body.decode()) == (200, f"{path} /talk {HOST}")
    # the same connection: first a file, then a program of its own
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", tree.port, timeout=ANSWER_WITHIN)
    ) as client:
        for path, body in (("/", b"<title>static</title>"), ("/talk/x", f"/talk/x /talk {HOST}".encode())):
            client.request("GET", path, headers={"Host": HOST})
            assert client.getresponse().read() == body
    tree.wait_for(lambda: '"GET /talk/x HTTP/1.1" 101 0 ' in tree.log())
    # many at once, held open: more than one process takes them
    with contextlib.ExitStack() as stack:
        held = []
        for _ in range(12):
            sock = stack.enter_context(tree.connect())
            sock.sendall(f"GET /talk/long HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            held.append(sock)
        for sock in held:
            assert sock.recv(15) == b"HTTP/1.1 200 OK"


def test_a_program_that_is_killed() -> None:
    """Its connections end, another one is started, and nobody else notices."""
    with serving(ordinary=True) as tools:
        tree = tools.tree
        with tree.connect() as sock:
            sock.sendall(f"GET /talk/long HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            assert sock.recv(15) == b"HTTP/1.1 200 OK"
            for pid in talkers(tools):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(65536):
                    pass
        tree.wait_for(lambda: tree.get(HOST, "/talk").status == 200)
        tree.wait_for(lambda: len(talkers(tools)) == 2)
        assert tree.get(HOST).status == 200


def talkers(tools: Tools) -> list[int]:
    """Return the pids of the mount's processes."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if f"{tools.folder}/talk.py".encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found
