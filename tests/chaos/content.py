"""What the trees under test serve: patterns by seed and size, as files and by an application; digests of uploads."""

from __future__ import annotations

from chaos import clients

APPLICATION = """
import hashlib, random

def application(environ, start_response):
    words = environ["PATH_INFO"].split("/")
    if words[1] == "pattern":
        body = random.Random(int(words[2])).randbytes(int(words[3]))
    else:
        digest = hashlib.sha256()
        while data := environ["wsgi.input"].read(65536):
            digest.update(data)
        body = digest.hexdigest().encode()
    start_response("200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", str(len(body)))])
    return [body]
"""


def files() -> dict[str, str | bytes]:
    """Return all files of both sites, by their paths below the tree's folder."""
    found: dict[str, str | bytes] = {"application/app.py": APPLICATION}
    for seed in clients.SEEDS:
        for size in (*clients.SIZES, clients.SLOW_SIZE):
            found[f"site/pattern/{seed}/{size}"] = clients.pattern(seed, size)
    return found
