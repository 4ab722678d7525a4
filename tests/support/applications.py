"""What users run, in a tenant's virtual environment (`scripts/venv apps`); and the steps of documents."""

from __future__ import annotations

import http.client
import re
import subprocess
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import urlencode

from support.tree import ANSWER_WITHIN, Answer, Tree

TOP = Path(__file__).resolve().parents[2]


@cache
def environment() -> Path:
    """Return the virtual environment with Django, Flask, FastAPI and WhiteNoise; made if it isn't there."""
    subprocess.run([TOP / "scripts/venv", "apps"], check=True, stdout=subprocess.DEVNULL)
    return TOP / ".venv-apps"


def blocks(mark: str, document: str = "wsgi.md") -> list[str]:
    """Return the blocks of a document behind `<!-- test: MARK -->`."""
    pattern = re.compile(rf"<!-- test: {mark} -->\n```\w+\n(.*?)```", re.DOTALL)
    found = pattern.findall((TOP / "docs" / document).read_text())
    assert found, f"{document} has no block marked {mark}"
    return found


@dataclass
class Browser:
    """A client with cookies, of one host."""

    tree: Tree
    host: str
    headers: dict[str, str] = field(default_factory=dict)
    cookies: dict[str, str] = field(default_factory=dict)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | list[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.tree.port, timeout=ANSWER_WITHIN)
        sent = {"Host": self.host, "Connection": "close", **self.headers, **(headers or {})}
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        with closing(connection):
            connection.request(method, path, body, sent, encode_chunked="Transfer-Encoding" in sent)
            response = connection.getresponse()
            for name, value in response.getheaders():
                if name.lower() == "set-cookie":
                    key, _, rest = value.partition("=")
                    self.cookies[key] = rest.partition(";")[0]
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def get(self, path: str) -> Answer:
        return self.ask("GET", path)

    def post(self, path: str, **fields: str) -> Answer:
        """Send a form, with the token that Django wants to see again."""
        token = re.search(rb'name="csrfmiddlewaretoken" value="(\w+)"', self.get(path).body)
        if token is not None:
            fields["csrfmiddlewaretoken"] = token[1].decode()
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        return self.ask("POST", path, urlencode(fields).encode(), form)

    def upload(self, path: str, name: str, content: bytes) -> Answer:
        boundary = "boundary-of-the-test"
        body = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n".encode()
            + content
            + f"\r\n--{boundary}--\r\n".encode()
        )
        return self.ask("POST", path, body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})


def arrives_in_pieces(tree: Tree, host: str, path: str, go_on: Path) -> None:
    """Check that the first piece comes while the application still waits for the file `go_on` to make the second."""
    with tree.connect() as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        got = b""
        while b"first" not in got:
            data = client.recv(65536)
            assert data, got
            got += data
        assert b"second" not in got
        go_on.touch()
        while data := client.recv(65536):
            got += data
    assert b"second" in got
    assert got.endswith(b"0\r\n\r\n")
