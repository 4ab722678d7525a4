"""Shares between roles of two releases, one wire version apart.

Rules
  1. A share's keys belong to the wire version. `ADDED` says what a version has added, each with the value that stands
     for "as before". No version removes or renames a key: it adds one, and the old one goes with the version after.
  2. master writes a share as the version has it that is spoken with the role (`as_of`): keys that were added since are
     left out, if they say "as before". If one doesn't, the share is withheld: the role has to be replaced first.
  3. A role that gets a share in an older version fills in what that doesn't have (`up_to_date`), and only then checks
     it: all keys, no others.

In step with: shares.py, kinds.py; tests/golden/shares.json has the keys of each version, and a test compares.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyttpd.config import limits
from pyttpd.config.shares import parse


class Withheld(Exception):
    """The share says what the role's release doesn't know yet; the text says which key."""


@dataclass(frozen=True, slots=True)
class Added:
    """A key that a version has added. `share` is "listener", "umaster", "vhost" or "map"; `path` as in
    "pool.max_age", "vhosts[].handovers", "mounts[wsgi].options.application"; `before`: the value for "as before".
    """

    share: str
    path: str
    before: object


#: By wire version.
ADDED: dict[int, tuple[Added, ...]] = {}


def share_of(role: str, part: str) -> str:
    """Return which share a part is that `role` gets."""
    return part if part == "map" else role


def as_of(share: str, data: bytes, version: int) -> bytes:
    """Return `data`, which is of the newest version, as `version` has it. Raises Withheld."""
    later = _later(share, version)
    if not later:
        return data
    value = json.loads(data)
    for key in later:
        for parent, name in _places(value, key.path):
            if parent.pop(name, key.before) != key.before:
                raise Withheld(f"{key.path} is new: replace this role first")
    return _written(value)


def up_to_date(share: str, data: bytes, version: int) -> bytes:
    """Return `data`, which is of `version`, with the keys that were added since. Raises ShareError."""
    later = _later(share, version)
    if not later:
        return data
    value = parse(data, limits.MAX_HOST_MAP_BYTES if share == "map" else limits.MAX_SHARE_BYTES)
    for key in later:
        for parent, name in _places(value, key.path):
            parent.setdefault(name, key.before)
    return _written(value)


def _later(share: str, version: int) -> list[Added]:
    return [key for since, keys in ADDED.items() if since > version for key in keys if key.share == share]


def _places(value: object, path: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each table that a key's path leads to, and the key's name there. What is malformed has none."""
    head, _, rest = path.partition(".")
    if not isinstance(value, dict):
        return
    if not rest:
        yield value, head
        return
    name, bracket, kind = head.partition("[")
    below = value.get(name)
    items = below if bracket and isinstance(below, list) else [] if bracket else [below]
    for item in items:
        if kind in ("", "]") or (isinstance(item, dict) and f"{item.get('kind')}]" == kind):
            yield from _places(item, rest)


def _written(value: Any) -> bytes:
    """Return JSON in the form of shares.py: what has vhosts has each on a line of its own (pieces.py)."""
    text = _json(value)
    vhosts = value.pop("vhosts", None) if isinstance(value, dict) else None
    if isinstance(vhosts, list):
        lines = ",\n".join([_json(each) for each in vhosts])
        text = f'{_json(value)[:-1]},"vhosts":[\n{lines}\n]}}'
    elif isinstance(vhosts, dict):
        lines = ",\n".join([f"{_json(name)}:{_json(each)}" for name, each in vhosts.items()])
        text = f'{_json(value)[:-1]},"vhosts":{{\n{lines}\n}}}}'
    return text.encode()


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
