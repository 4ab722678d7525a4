"""The conformance suite's table (tests/conformance/cases.py) through a whole tree: the listener judges first heads.

One tenant for each engine. What only the suite's own kind can do (trailers, fields as sent) isn't asked for here.
"""

from __future__ import annotations

from collections.abc import Callable

from conformance.cases import BODY_LIMIT, OPEN, PROBE, SECTIONS, WAITING, Case, Expected
from support.rawhttp import Client
from support.tree import Tree

APPLICATION = """
import re

STATUS = {200: "200 OK", 204: "204 No Content", 205: "205 Reset Content", 304: "304 Not Modified", 404: "404 Not Found"}


def application(environ, start_response):
    target = re.sub(r"^[A-Za-z]+://[^/?]*", "", environ["REQUEST_URI"])
    target = (target if target[:1] in "/*" and target else "/" + target).removesuffix("?")
    path = target.partition("?")[0]
    said = f"{environ['REQUEST_METHOD']} {target}".encode()
    if path.startswith("/body"):
        said += b" " + environ["wsgi.input"].read()
    first, _, last = path[1:].partition("/")
    if first == "swallow":
        try:
            said += b" " + environ["wsgi.input"].read()
        except OSError:
            pass
        first = last
    what = last if first == "out" else first
    code = int(what) if what.isdigit() else 200
    headers = [("Content-Type", "text/plain")]
    if what == "long":
        headers.append(("Content-Length", "5"))
    start_response(STATUS.get(code, f"{code} Status"), headers)
    if first == "out":
        return iter([b"123", b"4567"] if what == "long" else [b"pie", b"ces"])
    return [b"1234567" if what == "long" else said]
"""
HOSTS = {"llhttp": b"a.test", "h11": b"2.test"}
TENANTS = f"""
[vhost.llhttp]
hosts = ["a.test", "*.wild.test"]
uid = 20001
kind = "wsgi"
root = "application"
application = "app:application"
http = {{ engine = "llhttp", body_limit = {BODY_LIMIT} }}

[vhost.h11]
hosts = ["2.test", "*.wil2.test"]
uid = 20002
kind = "wsgi"
root = "application"
application = "app:application"
http = {{ engine = "h11", body_limit = {BODY_LIMIT} }}

[vhost.theirs]
hosts = ["theirs.wild.test", "*.deep.wild.test", "theirs.wil2.test", "*.deep.wil2.test"]
uid = 20003
kind = "static"
root = "site"
"""
#: Only the suite's own kind does this; and here somebody answers for the names that are others'.
ELSEWHERE = (b"/fields ", b"/trailers ", b"\r\nTE: ", b"theirs.", b".deep.")


def rows(engine: str) -> list[tuple[str, Case, bytes]]:
    """The rows that the tree can answer, with the tenant's name in them."""
    names = ((b"a.test", b"2.test"), (b"A.TEST", b"2.TEST"), (b".wild.test", b".wil2.test"))
    found = []
    for title, cases in SECTIONS.items():
        for case in cases:
            raw = case.raw
            for mine, others in names if engine == "h11" else ():
                raw = raw.replace(mine, others)
            first = raw.lower().partition(b"\r\n\r\n")[0]
            nameless = b"HTTP/1.0" in raw and HOSTS[engine] not in first  # there is no default tenant here
            if not nameless and not any(mark in raw for mark in ELSEWHERE):
                found.append((title, case, raw))
    return found


def test_the_table_through_a_tree(plant: Callable[..., Tree]) -> None:
    tree = plant(
        tenants=TENANTS,
        hosts=("a.test", "2.test", "theirs.wild.test"),
        files={"application/app.py": APPLICATION},
    )
    wrong = []
    for engine in HOSTS:
        table = rows(engine)
        assert len(table) > 400
        for title, case, raw in table:
            try:
                check(tree, engine, case, raw)
            except (AssertionError, OSError) as fault:
                wrong.append(f"{engine}: {title}: {case.name}: {fault}")
    assert not wrong, "\n".join(wrong)


def check(tree: Tree, engine: str, case: Case, raw: bytes) -> None:
    with tree.connect() as sock:
        client = Client(sock)
        try:
            sock.sendall(raw)
            if case.end is WAITING:
                client.close()
        except OSError:
            pass  # it has refused, lingered and gone: what it said is still to be read
        for expected in case.answers:
            got = client.answer(case.method)
            assert got.status == expected.status, got.status
            if got.status >= 200:
                assert "Date" in got
            compare(expected, got.body, dict(got.headers), engine)
        if case.end is OPEN:
            sock.sendall(PROBE.replace(b"a.test", HOSTS[engine]))
            assert client.answer().body == b"GET /probe"
            assert client.data == b""
        else:
            assert client.at_end()


def compare(expected: Expected, body: bytes, headers: dict[str, str], engine: str) -> None:
    if expected.status >= 400:  # the listener and the worker have words of their own
        assert headers.get("Connection") == expected.headers.get("Connection", headers.get("Connection"))
        return
    if expected.body is not None:
        assert body == expected.body.replace(b"a.test", HOSTS[engine]), body
    for name, value in expected.headers.items():
        assert headers.get(name) == value, (name, headers)
