#!/usr/bin/python3
"""Takes a file as a browser's script sends it (PUT), and says its size and SHA-256."""

import hashlib
import os
import sys

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>An upload</title></head><body><h1>An upload</h1>
<label>A file <input type="file" id="file"></label><pre id="said"></pre>
<script>file.onchange = async () => {
said.textContent = 'on its way ...';
const answer = await fetch(location.pathname, {method: 'PUT', body: file.files[0]});
said.textContent = await answer.text()}</script>
<p><a href="./">Back</a></p></body></html>"""


def main() -> None:
    """Answer one request."""
    if os.environ["REQUEST_METHOD"] != "PUT":
        print("Content-Type: text/html; charset=utf-8", "", PAGE, sep="\n")
        return
    left = int(os.environ.get("CONTENT_LENGTH") or 0)
    size, digest = 0, hashlib.sha256()
    while left and (piece := sys.stdin.buffer.read(min(left, 65536))):
        left -= len(piece)
        size += len(piece)
        digest.update(piece)
    print("Content-Type: text/plain", "", f"size: {size}", f"sha256: {digest.hexdigest()}", sep="\n")


if __name__ == "__main__":
    main()
