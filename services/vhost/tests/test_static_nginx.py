"""Beside nginx: the same requests for the same files, answered by both; status, headers and body side by side.

What may differ is in DIFFERENCES, each with its reason; everything else must be the same. A difference that no longer
shows is an error too, so that the list stays true.

Not compared: Date, Server and Connection; the value of ETag (whether there is one, and that each server's own works, is
compared); the words of refusals and redirects, which each server says in its own way, unless an error page is
configured for both.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pyttpd_vhost.pages import ErrorPages
from pyttpd_vhost.site import Site

from .conftest import Answer, Client, ListLog, Server, close, make_share, serves

pytestmark = pytest.mark.program("nginx")

#: When the files were last modified; that of the packed one is later, as a build makes it.
MODIFIED = 1_700_000_000
MODIFIED_DATE = "Tue, 14 Nov 2023 22:13:20 GMT"
OLD_DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
NEW_DATE = "Sat, 01 Jan 2028 00:00:00 GMT"
RFC_850 = "Tuesday, 14-Nov-23 22:13:20 GMT"
ASCTIME = "Tue Nov 14 22:13:20 2023"

FILES = {
    "index.html": b"<h1>index</h1>",
    "page.html": b"<p>page</p>" * 50,
    "style.css": b"a { color: red }\n" * 20,
    "script.js": b"let a = 1;\n" * 20,
    "data.json": b"[]",
    "feed.xml": b"<a/>",
    "image.png": bytes(range(256)) * 8,
    "image.svg": b"<svg/>",
    "text.txt": b"0123456789" * 10,
    "big.bin": bytes(range(256)) * 2000,
    "empty.txt": b"",
    "noext": b"no suffix",
    "odd.unheard-of": b"?",
    "UPPER.HTML": b"<p>upper</p>",
    "archive.tar.gz": b"\x1f\x8b not really",
    "a b+c&d=e;f,g@h~i'j(k)!.txt": b"odd",
    "\u00e9t\u00e9 %41.txt": b"summer",
    "back\\slash.txt": b"backslash",
    "colon:name.txt": b"colon",
    "sub/index.html": b"sub",
    "sub/file.txt": b"file",
    "sub/deeper/page.html": b"deeper",
    "space dir/index.html": b"space",
    "noindex/file.txt": b"no index here",
    "assets/app.js": b"app",
    "assets/deep/app.css": b"css",
    ".hidden": b"hidden",
    ".git/config": b"hidden",
    "sub/.hidden": b"hidden",
    ".well-known/acme-challenge/token": b"token",
    ".well-known/.hidden": b"hidden",
    "errors/404.html": b"<h1>Not here</h1>",
    "packed.css": b"body { margin: 0 }\n" * 100,
    "packed.css.gz": b"\x1f\x8b packed stylesheet",
    "packed/index.html": b"packed index " * 30,
    "packed/index.html.gz": b"\x1f\x8b packed index",
}

CONFIGURATION = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    sendfile on;
    etag on;
    if_modified_since before;
    charset utf-8;
    charset_types text/css application/javascript text/xml text/plain application/json image/svg+xml;
    absolute_redirect off;
    gzip_static on;
    gzip_vary on;
    gzip_proxied any;
    gzip_http_version 1.0;
    server {{
        listen 127.0.0.1:{port};
        root {root};
        index index.html;
        error_page 404 /errors/404.html;
        location ~ /\\.(?!well-known/) {{ return 404; }}
        location ~ ^/.+/\\. {{ return 404; }}
        location /assets/ {{ add_header Cache-Control "max-age=31536000, immutable"; }}
        location /sub/ {{ add_header Cache-Control "no-cache"; }}
    }}
}}
"""

STATIC = {
    "cache_control": {"assets/**": "max-age=31536000, immutable", "sub/**": "no-cache"},
    "precompressed": ("gzip",),
}

PATHS = [
    *[f"/{name}" for name in FILES if name.isascii() and " " not in name and "&" not in name],
    "/",
    "/?query",
    "/page.html?a=b&c=d",
    "/a%20b+c&d=e;f,g@h~i'j(k)!.txt",
    "/%C3%A9t%C3%A9%20%2541.txt",
    "/%70age.html",
    "/page%2ehtml",
    "/sub",
    "/sub/",
    "/sub?a=b&c=%2F",
    "/sub//",
    "//sub",
    "//sub/file.txt",
    "/sub//file.txt",
    "///",
    "/sub/.",
    "/sub/..",
    "/sub/./file.txt",
    "/sub/../page.html",
    "/none/../page.html",
    "/sub/deeper/../../page.html",
    "/sub%2Ffile.txt",
    "/sub%2f..%2fpage.html",
    "/%2e%2e/page.html",
    "/..",
    "/../page.html",
    "/sub/../../page.html",
    "/%2e%2e%2fetc/passwd",
    "/..%2f..%2fetc/passwd",
    "/%252e%252e/page.html",
    "/..%5c..%5cetc/passwd",
    "/page.html%00",
    "/%00",
    "/page.html%0a",
    "/space%20dir",
    "/space%20dir/",
    "/back%5cslash.txt",
    "/noindex",
    "/noindex/",
    "/none",
    "/none/",
    "/none/none",
    "/page.html/",
    "/page.html/none",
    "/link.txt",
    "/linkdir",
    "/linkdir/file.txt",
    "/broken",
    "/loop",
    "/fifo",
    "/" + "a" * 255,
    "/" + "a" * 300,
    "/" + "a/" * 1500,
    "/%",
    "/%zz",
    "/page.html#fragment",
    "/page.html;a=b",
    "/PAGE.html",
    "/assets/",
    "/.well-known/",
    "/.well-known/acme-challenge",
    "/.%77ell-known/acme-challenge/token",
    "/sub/.well-known/token",
    "/.git/",
    "/.git",
    "/.git/../page.html",
    "/errors/404.html",
    "/packed/",
    "/packed",
    "http://a.test/page.html",
    "http://a.test",
    "http://a.test?query",
]

#: {etag}: the server's own of that path.
CONDITIONS = [
    "If-None-Match: {etag}",
    "If-None-Match: W/{etag}",
    'If-None-Match: "other"',
    'If-None-Match: "other", {etag}',
    'If-None-Match: "a,b" , W/"c",,{etag}',
    "If-None-Match: *",
    "If-None-Match: ",
    "If-None-Match: other",
    'If-None-Match: "other"|If-None-Match: {etag}',
    "If-Match: {etag}",
    "If-Match: W/{etag}",
    'If-Match: "other"',
    'If-Match: "other", {etag}',
    "If-Match: *",
    "If-Match: other",
    f"If-Modified-Since: {MODIFIED_DATE}",
    f"If-Modified-Since: {RFC_850}",
    f"If-Modified-Since: {ASCTIME}",
    f"If-Modified-Since: {OLD_DATE}",
    f"If-Modified-Since: {NEW_DATE}",
    "If-Modified-Since: yesterday",
    "If-Modified-Since: 0",
    f"If-Unmodified-Since: {MODIFIED_DATE}",
    f"If-Unmodified-Since: {RFC_850}",
    f"If-Unmodified-Since: {ASCTIME}",
    f"If-Unmodified-Since: {OLD_DATE}",
    f"If-Unmodified-Since: {NEW_DATE}",
    "If-Unmodified-Since: never",
    f'If-None-Match: "other"|If-Modified-Since: {MODIFIED_DATE}',
    f"If-None-Match: {{etag}}|If-Modified-Since: {OLD_DATE}",
    f"If-None-Match: {{etag}}|If-Modified-Since: {MODIFIED_DATE}",
    f"If-Match: {{etag}}|If-Unmodified-Since: {OLD_DATE}",
    f'If-Match: "other"|If-Unmodified-Since: {NEW_DATE}',
    "If-Match: {etag}|If-None-Match: {etag}",
    'If-Match: "other"|If-None-Match: {etag}',
    f"If-Unmodified-Since: {OLD_DATE}|If-None-Match: {{etag}}",
    f"If-Unmodified-Since: {MODIFIED_DATE}|If-Modified-Since: {MODIFIED_DATE}",
]

RANGES = [
    "bytes=0-0",
    "bytes=0-9",
    "bytes=10-",
    "bytes=-10",
    "bytes=-0",
    "bytes=-1000000",
    "bytes=0-1000000",
    "bytes=0-",
    "bytes=99-",
    "bytes=99-99",
    "bytes=100-",
    "bytes=100-200",
    "bytes=1000000-",
    "bytes=5-4",
    "bytes=0-0,2-2",
    "bytes=0-0, 2-2 ,4-4",
    "bytes=0-0,,2-2",
    "bytes=0-9,5-14",
    "bytes=0-99,0-99",
    "bytes=-5,0-4",
    "bytes=90-,-5",
    "bytes=0-0,1000000-",
    "bytes=1000000-,2000000-",
    "bytes=5-4,0-0",
    "bytes=",
    "bytes",
    "bytes=a-b",
    "bytes=1-b",
    "bytes=--1",
    "bytes=1",
    "bytes=0-0;1-1",
    "bytes 0-0",
    "BYTES=0-0",
    "lines=0-9",
    "bytes=00000000000000000000000000000000-1",
    "bytes=0-99999999999999999999999999",
    "bytes=18446744073709551616-",
    "bytes= 0-1",
    "bytes=0 - 1",
    "bytes=" + ",".join([f"{first}-{first}" for first in range(0, 80, 2)]),
    "bytes=" + ",".join(["0-"] * 100),
]

IF_RANGES = [
    "If-Range: {etag}",
    "If-Range: W/{etag}",
    'If-Range: "other"',
    f"If-Range: {MODIFIED_DATE}",
    f"If-Range: {ASCTIME}",
    f"If-Range: {OLD_DATE}",
    f"If-Range: {NEW_DATE}",
    "If-Range: never",
    "If-Range: {etag}|If-None-Match: {etag}",
    'If-Range: {etag}|If-Match: "other"',
]

ENCODINGS = [
    "gzip",
    "gzip, deflate, br",
    "gzip;q=0",
    "gzip;q=0.5",
    "gzip; q=0.001",
    "gzip;q=1.0",
    "br",
    "deflate",
    "identity",
    "*",
    "*;q=0",
    "gzip;q=0, *",
    "identity;q=0",
    "identity;q=1, *;q=0",
    "identity;q=1, gzip;q=0.5",
    "GZIP",
    "x-gzip",
    "gzipped",
    "",
]

METHODS = ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW", "PROPFIND"]


@dataclass(frozen=True)
class Case:
    method: str
    target: str
    headers: tuple[str, ...] = ()
    version: str = "1.1"

    def __str__(self) -> str:
        target = self.target if len(self.target) < 60 else f"{self.target[:50]}..."
        headers = " ".join([f"[{header:.80}]" for header in self.headers])
        return f"{self.method} {target} {self.version} {headers}".rstrip()

    def has(self, name: str) -> bool:
        return any(header.lower().startswith(f"{name}:") for header in self.headers)


def cases() -> Iterator[Case]:
    for path in PATHS:
        yield Case("GET", path)
        yield Case("HEAD", path)
    for path in ("/text.txt", "/big.bin", "/"):
        for method in ("GET", "HEAD"):
            for headers in CONDITIONS:
                yield Case(method, path, tuple(headers.split("|")))
        for range_ in RANGES:
            yield Case("GET", path, (f"Range: {range_}",))
        for headers in IF_RANGES:
            yield Case("GET", path, ("Range: bytes=5-9", *headers.split("|")))
    for range_ in ("bytes=0-0", "bytes=0-0,2-2", "bytes=1000-", "bytes=-5", "bytes=0-"):
        yield Case("HEAD", "/text.txt", (f"Range: {range_}",))
        yield Case("GET", "/empty.txt", (f"Range: {range_}",))
        yield Case("GET", "/none", (f"Range: {range_}",))
        yield Case("GET", "/sub", (f"Range: {range_}",))
        yield Case("GET", "/assets/app.js", (f"Range: {range_}",))
        yield Case("GET", "/packed.css", (f"Range: {range_}", "Accept-Encoding: gzip"))
    for path in ("/packed.css", "/packed/", "/text.txt", "/packed.css.gz"):
        for encoding in ENCODINGS:
            yield Case("GET", path, (f"Accept-Encoding: {encoding}",))
        yield Case("HEAD", path, ("Accept-Encoding: gzip",))
        yield Case("GET", path, ("Accept-Encoding: gzip", "If-None-Match: {etag}"))
        yield Case("GET", path, ("If-None-Match: {etag}",))
        yield Case("GET", path, ("Accept-Encoding: gzip;q=0", "Accept-Encoding: gzip"))
        yield Case("GET", path, ("Accept-Encoding: gzip", "Via: 1.1 proxy"))
        yield Case("GET", path, ("Accept-Encoding: gzip",), "1.0")
    for path in ("/page.html", "/sub/", "/sub", "/noindex/", "/none", "/.hidden"):
        for method in METHODS:
            yield Case(method, path, ("Content-Length: 0",))
        yield Case("GET", path, (), "1.0")
        yield Case("GET", path, ("If-Match: *",))
        yield Case("GET", path, ("If-None-Match: *",))


CASES = list(cases())


class Peer:
    """One of the two servers, asked over one connection for as long as it keeps it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._client: Client | None = None
        self._etags: dict[tuple[str, bool], str] = {}

    def ask(self, case: Case) -> Answer:
        if any("{etag}" in header for header in case.headers):
            packed = "Accept-Encoding: gzip" in case.headers
            case = replace(
                case,
                headers=tuple(
                    [
                        header.replace("{etag}", self._etag(case.target, packed=packed))
                        for header in case.headers
                    ]
                ),
            )
        try:
            return self._exchange(case)
        except (AssertionError, OSError):
            self.close()
            return self._exchange(case)

    def _etag(self, target: str, *, packed: bool) -> str:
        if (target, packed) not in self._etags:
            answer = self.ask(Case("HEAD", target, ("Accept-Encoding: gzip",) if packed else ()))
            self._etags[target, packed] = answer["ETag"]
        return self._etags[target, packed]

    def _exchange(self, case: Case) -> Answer:
        if self._client is None:
            self._client = Client(socket.create_connection(("127.0.0.1", self._port), timeout=10))
        lines = [f"{case.method} {case.target} HTTP/{case.version}", "Host: a.test", *case.headers]
        self._client.sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        answer = self._client.answer(case.method)
        if case.version == "1.0" or ("Connection" in answer and answer["Connection"] == "close"):
            self.close()
        return answer

    def close(self) -> None:
        if self._client is not None:
            self._client.sock.close()
            self._client = None


COMPARED = (
    "Content-Type",
    "Content-Length",
    "Content-Encoding",
    "Content-Range",
    "Accept-Ranges",
    "Last-Modified",
    "ETag",
    "Vary",
    "Cache-Control",
    "Location",
    "Allow",
)


def seen(answer: Answer) -> dict[str, str]:
    """Return what is compared of an answer."""
    result = {"status": str(answer.status)}
    for name in COMPARED:
        if name in answer:
            result[name] = answer[name] if name != "ETag" else "there"
    body = answer.body
    if boundary := re.search("boundary=(.*)", result.get("Content-Type", "")):
        body = body.replace(boundary[1].encode(), b"BOUNDARY")
        result["Content-Type"] = "multipart/byteranges; boundary=BOUNDARY"
        result["Content-Length"] = str(
            int(result["Content-Length"]) - body.count(b"BOUNDARY") * len(boundary[1])
        )
    result["body"] = repr(body)
    if answer.status >= 300 and answer.status not in (304, 404):
        for name in ("body", "Content-Type", "Content-Length"):  # each its own words
            result.pop(name, None)
    return result


@dataclass(frozen=True)
class Difference:
    """Where we differ from nginx on purpose: why, for which cases, and in what (`fields` empty: in everything)."""

    reason: str
    when: Callable[[Case, dict[str, str], dict[str, str]], bool]
    fields: frozenset[str] = frozenset()


def header(case: Case, name: str) -> str:
    return ", ".join(
        [each.partition(": ")[2] for each in case.headers if each.lower().startswith(f"{name}: ")]
    )


DIFFERENCES = [
    Difference(
        "text/javascript is the type (RFC 9239); application/javascript is obsolete",
        lambda case, ours, theirs: ".js" in case.target,
        frozenset({"Content-Type", "Content-Length", "body"}),  # a part of a multipart names it as well
    ),
    Difference(
        "application/gzip is a type (RFC 6713); nginx's table lacks it",
        lambda case, ours, theirs: case.target.endswith(".gz"),
        frozenset({"Content-Type"}),
    ),
    Difference(
        "a backslash or a fragment in a request's target is against RFC 3986",
        lambda case, ours, theirs: ours["status"] == "400" and ("\\" in case.target or "#" in case.target),
    ),
    Difference(
        "an error page has no validators: they would be those of another representation",
        lambda case, ours, theirs: theirs["status"] == "404",
        frozenset({"ETag"}),
    ),
    Difference(
        "a link in a circle leads nowhere: nothing is forbidden, nothing is there",
        lambda case, ours, theirs: case.target == "/loop",
    ),
    Difference(
        "405 says what is allowed (RFC 9110 section 15.5.6: it must)",
        lambda case, ours, theirs: ours["status"] == "405",
        frozenset({"Allow"}),
    ),
    Difference(
        "OPTIONS is answered (RFC 9110 section 9.3.7)",
        lambda case, ours, theirs: case.method == "OPTIONS" and ours["status"] == "204",
    ),
    Difference(
        "what the method may not do is said before what is there; nginx looks for the file first",
        lambda case, ours, theirs: ours["status"] == "405" and theirs["status"] in ("301", "403", "404"),
    ),
    Difference(
        "a method that nobody knows is 501 (RFC 9110 section 15.6.2)",
        lambda case, ours, theirs: case.method == "BREW" and ours["status"] == "501",
    ),
    Difference(
        "several fields of a list are one list (RFC 9110 section 5.3); nginx refuses the second, or reads the first",
        lambda case, ours, theirs: len({each.partition(":")[0] for each in case.headers}) < len(case.headers),
    ),
    Difference(
        "a date that is none is ignored (RFC 9110 section 13.1.4)",
        lambda case, ours, theirs: header(case, "if-unmodified-since") == "never" and ours["status"] == "200",
    ),
    Difference(
        "If-None-Match decides alone (RFC 9110 section 13.1.3)",
        lambda case, ours, theirs: (
            case.has("if-none-match")
            and case.has("if-modified-since")
            and (ours["status"], theirs["status"]) == ("304", "200")
        ),
    ),
    Difference(
        "If-Match decides alone (RFC 9110 section 13.1.4)",
        lambda case, ours, theirs: (
            case.has("if-match")
            and case.has("if-unmodified-since")
            and (ours["status"], theirs["status"]) == ("200", "412")
        ),
    ),
    Difference(
        "Range is for GET alone (RFC 9110 section 14.2)",
        lambda case, ours, theirs: case.method == "HEAD" and case.has("range") and ours["status"] == "200",
    ),
    Difference(
        "empty elements of a list don't count (RFC 9110 section 5.6.1.2)",
        lambda case, ours, theirs: ",," in header(case, "range") and ours["status"] == "206",
    ),
    Difference(
        "blanks within a range are against its grammar (RFC 9110 section 14.1.1)",
        lambda case, ours, theirs: header(case, "range") == "bytes=0 - 1" and ours["status"] == "416",
    ),
    Difference(
        "an error's answer has no Cache-Control of the file that it isn't",
        lambda case, ours, theirs: ours["status"] in ("412", "416"),
        frozenset({"Cache-Control"}),
    ),
    Difference(
        "a variant has ranges as well; nginx sends the whole, and says nothing of ranges",
        lambda case, ours, theirs: theirs.get("Content-Encoding") == "gzip",
        frozenset({"Accept-Ranges"}),
    ),
    Difference(
        "a variant has ranges as well; nginx sends the whole",
        lambda case, ours, theirs: (
            case.has("range")
            and theirs.get("Content-Encoding") == "gzip"
            and ours["status"] in ("206", "416")
        ),
    ),
    Difference(
        '"*" and x-gzip are gzip, too (RFC 9110 section 8.4.1.3 and 12.5.3)',
        lambda case, ours, theirs: (
            header(case, "accept-encoding") in ("*", "x-gzip") and ours.get("Content-Encoding") == "gzip"
        ),
    ),
    Difference(
        "the greater weight wins (RFC 9110 section 12.5.3); nginx sends what is packed to all who accept it",
        lambda case, ours, theirs: (
            "identity;q=1, gzip" in header(case, "accept-encoding")
            and theirs.get("Content-Encoding") == "gzip"
        ),
    ),
]


def make_tree(root: Path) -> None:
    for name, content in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        later = 10 if path.suffix == ".gz" else 0
        os.utime(path, (MODIFIED + later, MODIFIED + later))
    (root / "link.txt").symlink_to("text.txt")
    (root / "linkdir").symlink_to("sub")
    (root / "broken").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "fifo")


@contextlib.contextmanager
def nginx(folder: Path, root: Path) -> Iterator[int]:
    """Run nginx, yield its port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    configuration = folder / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, root=root, port=port))
    process = subprocess.Popen(
        ["nginx", "-p", folder, "-c", configuration], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        while True:  # until it listens; pytest's timeout is the end of it
            try:
                socket.create_connection(("127.0.0.1", port), timeout=10).close()
                break
            except ConnectionRefusedError:
                assert process.poll() is None, process.communicate()[1]
                time.sleep(0.01)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[tuple[Peer, Peer]]:
    root = tmp_path / "root"
    root.mkdir()
    make_tree(root)
    tmp_path.chmod(0o755)
    share = make_share(
        **serves(root, **STATIC),
        error_pages={"404": "errors/404.html"},
    )
    site = Site(share, ListLog())
    site.load()
    assert isinstance(site.page.__self__, ErrorPages)  # type: ignore[attr-defined]
    server = Server(site)
    server.start()
    try:
        with nginx(tmp_path, root) as port:
            ours, theirs = Peer(server.port), Peer(port)
            yield ours, theirs
            ours.close()
            theirs.close()
    finally:
        server.stop()
        close(site)


def test_beside_nginx(peers: tuple[Peer, Peer]) -> None:
    assert len(CASES) > 700
    wrong = []
    unused = set(DIFFERENCES)
    # twice: what is remembered is the same as what is new
    for case in [*CASES, *CASES]:
        ours, theirs = (seen(peer.ask(case)) for peer in peers)
        differing = {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}
        for difference in DIFFERENCES if differing else ():
            if difference.when(case, ours, theirs):
                explained = differing & difference.fields if difference.fields else differing
                if explained:
                    unused.discard(difference)
                differing = differing - explained
        if differing:
            both = {name: (ours.get(name, "-")[:100], theirs.get(name, "-")[:100]) for name in differing}
            wrong.append(f"{case}\n    " + "\n    ".join(map(str, both.items())))
    assert not wrong, f"{len(wrong)} unexplained differences (ours, nginx's):\n" + "\n".join(wrong[:20])
    assert not unused, [difference.reason for difference in unused]


def test_the_differences_are_told() -> None:
    document = (Path(__file__).resolve().parents[3] / "docs/static.md").read_text()
    told = document.partition("**Where an answer differs")[2].partition("\n\n")[2]
    assert told.splitlines() == [f"- {difference.reason}" for difference in DIFFERENCES]
