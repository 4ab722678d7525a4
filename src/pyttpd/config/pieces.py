"""umaster's share and the host map, a piece at a time: who routes connections has no tenth of a second for 100,000
names.

Rules
  1. What `to_json` of the two writes is JSON, with one vhost on each line; `from_json` reads it in one go.
  2. The readers here are generators: each step takes about a line's time, so that the caller stops where it likes
     and goes on later. What they return equals what `from_json` returns; what that refuses they refuse
     (ShareError), and beyond it whatever isn't in lines.
  3. `run` is how a caller goes on: until a time is up.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import TypeVar

from pyttpd.config import limits
from pyttpd.config.checks import ShareError
from pyttpd.config.shares import (
    MAP_END,
    SHARE_END,
    Buffer,
    HostMap,
    UmasterShare,
    VhostPeer,
    parse,
    vhost_peer,
)
from pyttpd.roles import MAX_NAMES, MAX_VHOSTS

T = TypeVar("T")
#: A piece of work: each step is short, and what it comes to is returned.
Steps = Generator[None, None, T]


def run(steps: Steps[T], seconds: float) -> tuple[bool, T | None]:
    """Go on with `steps` for about `seconds`; return whether it has come to its end, and what it came to."""
    until = time.monotonic() + seconds
    try:
        while True:
            next(steps)
            if time.monotonic() >= until:
                return False, None
    except StopIteration as end:
        return True, end.value


def read_map(data: Buffer) -> Steps[HostMap]:
    """Read what HostMap.to_json() made."""
    head, lines = _split(data, MAP_END, limits.MAX_HOST_MAP_BYTES)
    frame = HostMap.from_json(head)
    exact: dict[str, str] = {}
    wildcard: dict[str, str] = {}
    count = depth = 0
    for vhosts, line in enumerate(lines, 1):
        one = HostMap.from_json(b'{"generation":1,"default":null,"vhosts":{' + line + b"}}")
        count += len(one.exact) + len(one.wildcard)
        if count > MAX_NAMES or vhosts > MAX_VHOSTS:
            raise ShareError(f"host map: must be at most {MAX_NAMES} names of {MAX_VHOSTS} vhosts")
        exact |= one.exact
        wildcard |= one.wildcard
        depth = max(depth, one.depth)
        yield
    if len(exact) + len(wildcard) != count:
        raise ShareError("host map: a name is there twice")
    return frame.filled(exact, wildcard, depth)


def read_umaster(data: Buffer) -> Steps[UmasterShare]:
    """Read what UmasterShare.to_json() made."""
    head, lines = _split(data, SHARE_END, limits.MAX_SHARE_BYTES)
    frame = UmasterShare.from_json(head)
    peers: dict[str, VhostPeer] = {}
    for line in lines:
        peer = vhost_peer(parse(line, limits.MAX_SHARE_BYTES), "vhosts")
        if peer.name in peers or len(peers) >= MAX_VHOSTS:
            raise ShareError("vhosts: one of them is there twice, or there are too many")
        peers[peer.name] = peer
        yield
    return frame.filled(tuple(peers.values()))


def _split(data: Buffer, end: bytes, most: int) -> tuple[bytes, list[bytes]]:
    """Return the frame around the lines, and the lines without the commas between them."""
    raw = bytes(data)
    if len(raw) > most:
        raise ShareError(f"share: must be at most {most} bytes")
    first, *lines = raw.split(b"\n")
    if not lines or lines.pop() != end:
        raise ShareError("share: must have a vhost on each line")
    for number, line in enumerate(lines[:-1]):
        if not line.endswith(b","):
            raise ShareError("share: must have a vhost on each line")
        lines[number] = line[:-1]
    return first + end, [line for line in lines if line]
