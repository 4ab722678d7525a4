"""A guest book: a pure PEP 3333 application with a PostgreSQL database, the only thing in the world that it can reach.

A connection to the database is opened by the first request that needs it, and belongs to the thread that serves: what
is opened at import would be shared by all workers, which are forked from one process.
"""

import html
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

import psycopg

TABLE = "CREATE TABLE IF NOT EXISTS guests (id bigint GENERATED ALWAYS AS IDENTITY, name text NOT NULL)"
LONGEST = 10_000
PAGE = """<!doctype html>
<title>Guest book</title>
<h1>Guest book</h1>
<form method="post"><input name="name" autofocus> <button>Sign</button></form>
<ul>
{guests}
</ul>
"""
mine = threading.local()


def database() -> psycopg.Connection[Any]:
    """Return this thread's connection; a new one if there is none, or if the database has ended it."""
    connection: psycopg.Connection[Any] | None = getattr(mine, "connection", None)
    if connection is None or connection.closed:
        connection = mine.connection = psycopg.connect(
            os.environ["DATABASE_URL"], autocommit=True, connect_timeout=5
        )
        connection.execute(TABLE)
    return connection


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    if environ["REQUEST_METHOD"] == "POST":
        length = min(int(environ.get("CONTENT_LENGTH") or 0), LONGEST)
        form = parse_qs(environ["wsgi.input"].read(length).decode("utf-8", "replace"))
        for name in form.get("name", [])[:1]:
            database().execute(
                "INSERT INTO guests (name) VALUES (%s)", (name.strip()[:100].replace("\0", ""),)
            )
        start_response("303 See Other", [("Location", "/"), ("Content-Length", "0")])
        return []
    names = database().execute("SELECT name FROM guests ORDER BY id DESC LIMIT 100").fetchall()
    guests = "\n".join(f"<li>{html.escape(name)}</li>" for (name,) in names)
    body = PAGE.format(guests=guests).encode()
    start_response(
        "200 OK", [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(body)))]
    )
    return [body]
