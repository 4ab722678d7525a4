"""Which of a file's packed variants a client gets (RFC 9110 section 12.5.3).

Rules:
- The highest weight wins; of equals the first that we have, then the plain file.
- A coding that isn't named has the weight of "*"; without that, only the plain file is acceptable, and less than what
  was named.
- A client that accepts nothing of what there is gets the plain file all the same: it can do no harm, and a 406 does.
- Without the field the plain file: who doesn't ask can't be relied on to unpack (curl, for one).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

#: The file name suffix of each coding of limits.CODINGS.
SUFFIXES = {"br": b".br", "zstd": b".zst", "gzip": b".gz"}

#: Values that are remembered: browsers send a handful, and those are short.
_MAX_REMEMBERED_LENGTH = 128
_MAX_REMEMBERED = 256

_ELEMENT = re.compile(r"([!#$%&'*+\-.^_`|~0-9a-z]+)(?:[ \t]*;[ \t]*q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?))?")


def choose(value: bytes | None, codings: Sequence[str]) -> str | None:
    """Return the one of `codings` (best first) for Accept-Encoding `value`; None: the plain file."""
    if value is None:
        return None
    if len(value) <= _MAX_REMEMBERED_LENGTH:
        return _remembered(value, tuple(codings))
    return _choose(value, codings)


def _choose(value: bytes, codings: Sequence[str]) -> str | None:
    weights: dict[str, float] = {}
    for element in value.decode("latin-1").lower().split(","):
        match = _ELEMENT.fullmatch(element.strip(" \t"))
        if match is not None:
            weights[match[1].removeprefix("x-")] = float(match[2]) if match[2] else 1.0
    others = weights.get("*", 0.0)
    best, best_weight = None, weights.get("identity", 0.0)
    for coding in reversed(codings):
        weight = weights.get(coding, others)
        if weight and weight >= best_weight:
            best, best_weight = coding, weight
    return best


_remembered = lru_cache(maxsize=_MAX_REMEMBERED)(_choose)
