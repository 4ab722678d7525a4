"""A folder's list of files, for a person: one HTML page without scripts and without anything from elsewhere.

Rules:
- What isn't served isn't listed: hidden names, what is neither file nor folder, links that lead out of the root.
- Names are the tenant's users' (uploads, perhaps): escaped in the text, percent-encoded in the links, so that none
  is markup, a scheme ("javascript:") or another host ("//").
- Folders first, then by name as people sort: case doesn't count, numbers do.
- MAX_ENTRIES are shown, and the page says so if there are more.
"""

from __future__ import annotations

import os
import re
import stat
import time
from html import escape
from urllib.parse import quote

from pyttpd_vhost.openat2 import Root

#: A page of more is of no use to a person, and takes a worker longer than a tenth of a second.
MAX_ENTRIES = 5000

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ --text: #1c1e21; --soft: #6a737d; --line: #e4e6ea; --over: #f4f6f9; --link: #0b5cad; --back: #fff; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --text: #e3e5e8; --soft: #949ca6; --line: #30343a; --over: #23272c; --link: #7db7f5; --back: #1a1c1f; }}
}}
body {{ margin: 0 auto; max-width: 60rem; padding: 2rem 1rem; color: var(--text); background: var(--back);
  font: 1rem/1.5 system-ui, sans-serif; }}
h1 {{ margin: 0 0 1rem; font-size: 1.25rem; font-weight: 600; overflow-wrap: anywhere; }}
h1 a {{ color: inherit; }}
table {{ width: 100%; border-collapse: collapse; }}
th {{ padding: .4rem .6rem; text-align: left; font-size: .8rem; font-weight: 600; color: var(--soft); }}
td {{ padding: .35rem .6rem; border-top: 1px solid var(--line); vertical-align: top; }}
td:first-child {{ width: 100%; overflow-wrap: anywhere; }}
.size, .time {{ text-align: right; white-space: nowrap; color: var(--soft); font-variant-numeric: tabular-nums; }}
tbody tr:hover {{ background: var(--over); }}
a {{ color: var(--link); text-decoration: none; }}
a:hover, a:focus {{ text-decoration: underline; }}
.folder a {{ font-weight: 600; }}
p {{ color: var(--soft); font-size: .9rem; }}
@media (max-width: 34rem) {{ .time {{ display: none; }} }}
</style>
</head>
<body>
<h1>{trail}</h1>
<table>
<thead><tr><th>Name</th><th class="size">Size</th><th class="time">Changed (UTC)</th></tr></thead>
<tbody>
{rows}</tbody>
</table>
<p>{summary}</p>
</body>
</html>
"""

_ROW = (
    '<tr{kind}><td><a href="{href}">{name}</a></td><td class="size"{bytes}>{size}</td>'
    '<td class="time">{time}</td></tr>\n'
)

_DIGITS = re.compile(r"([0-9]+)")


def render(root: Root, path: bytes, fd: int) -> bytes:
    """Return the page for the folder `path` below `root` (b"", or with its slash), open as `fd`. Raises OSError."""
    folders: list[tuple[str, bytes, os.stat_result]] = []
    files: list[tuple[str, bytes, os.stat_result]] = []
    more = False
    with os.scandir(fd) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            status = _status(root, path, entry)
            if status is None:
                continue
            if len(folders) + len(files) == MAX_ENTRIES:
                more = True
                break
            raw = os.fsencode(entry.name)
            is_folder = stat.S_ISDIR(status.st_mode)
            (folders if is_folder else files).append((raw.decode(errors="replace"), raw, status))
    rows = ""
    if path:
        rows += _ROW.format(kind=' class="folder"', href="../", name="..", bytes="", size="", time="")
    for name, raw, status in sorted(folders, key=_order):
        rows += _row(f"{name}/", f"{quote(raw, safe='')}/", status, folder=True)
    for name, raw, status in sorted(files, key=_order):
        rows += _row(name, quote(raw, safe=""), status, folder=False)
    total = sum([status.st_size for _, _, status in files])
    summary = f"{_count(len(folders), 'folder')}, {_count(len(files), 'file')}, {_size(total)}"
    if more:
        summary += f". There are more: only {MAX_ENTRIES} are shown."
    title = escape(f"/{path.decode(errors='replace')}")
    page = _PAGE.format(title=title, trail=_trail(path), rows=rows, summary=summary)
    return page.encode()


def _status(root: Root, path: bytes, entry: os.DirEntry[str]) -> os.stat_result | None:
    """Return the status of what is served for an entry; None: nothing is."""
    try:
        if entry.is_symlink():
            # where it leads, if that is below the root
            fd = root.open(path + os.fsencode(entry.name))
            try:
                status = os.fstat(fd)
            finally:
                os.close(fd)
        else:
            status = entry.stat(follow_symlinks=False)
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) else None


def _order(each: tuple[str, bytes, os.stat_result]) -> tuple[list[tuple[int, str]], str]:
    """Return what names are sorted by: text without case, numbers by their length and digits."""
    name = each[0]
    parts = _DIGITS.split(name.casefold())
    return [
        (len(part.lstrip("0")), part.lstrip("0")) if number % 2 else (0, part)
        for number, part in enumerate(parts)
    ], name


def _trail(path: bytes) -> str:
    """Return the way from the root to the folder, as links."""
    names = path.split(b"/")[:-1]
    up = len(names)
    trail = f'<a href="{"../" * up or "./"}">/</a>'
    for depth, name in enumerate(names, 1):
        href = "../" * (up - depth) or "./"
        trail += f'<a href="{href}">{escape(name.decode(errors="replace"))}/</a>'
    return trail


def _row(name: str, href: str, status: os.stat_result, *, folder: bool) -> str:
    changed = time.gmtime(min(max(status.st_mtime, 0), 253402300799))
    return _ROW.format(
        kind=' class="folder"' if folder else "",
        href=href,
        name=escape(name),
        bytes="" if folder else f' title="{status.st_size} bytes"',
        size="" if folder else _size(status.st_size),
        time=time.strftime("%Y-%m-%d %H:%M", changed),
    )


def _size(count: int) -> str:
    """Return a size as people read it, in powers of 1024."""
    if count < 1024:
        return f"{count} B"
    size, units = count / 1024, ["PiB", "TiB", "GiB", "MiB", "KiB"]
    while size >= 1023.95 and len(units) > 1:
        size /= 1024
        units.pop()
    return f"{size:.1f} {units[-1]}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
