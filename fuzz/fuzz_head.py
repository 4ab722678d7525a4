"""Fuzz the head scanner by hand, with h11 and llhttp as oracles; guided by coverage if atheris is installed:

    PYTHONPATH=src:tests python fuzz/fuzz_head.py [folder with a corpus] [libFuzzer's options: -runs= -max_len=]
    PYTHONPATH=src:tests python fuzz/fuzz_head.py --hypothesis 10000   (needs no atheris: so many examples)

What must hold for any bytes: the verdict on a prefix is the verdict on the whole, the accepting and the refusing
reading agree, and engines differ for listed reasons only (tests/conformance/head_oracles.py).
"""

import sys
from importlib import import_module
from typing import Any

from hypothesis import HealthCheck, given, settings

from pyttpd import head

from conformance.head_oracles import LIMIT, disagreement
from conformance.heads import mutants

#: Prefixes that are tried of each input: all would make long inputs too slow.
PREFIXES = 64


class Fault(AssertionError):
    """The scanner broke one of its promises."""


def verdict(data: bytes) -> head.Head | tuple[int, str] | None:
    try:
        return head.scan(data, LIMIT)
    except head.Refused as refused:
        return refused.status, refused.reason


def one_input(data: bytes) -> None:
    found = verdict(data)
    if found == (400, "malformed head"):
        raise Fault("the two readings of the grammar differ")
    for size in range(0, len(data), max(1, len(data) // PREFIXES)):
        early = verdict(data[:size])
        if early not in (None, found):
            raise Fault(f"the first {size} bytes: {early}, all of them: {found}")
    if isinstance(found, head.Head) and verdict(data[: found.end]) != found:
        raise Fault("what lies behind the head counts")
    if wrong := disagreement(data):
        raise Fault(wrong)


def main() -> None:
    if sys.argv[1:2] == ["--hypothesis"]:
        count = int(sys.argv[2])
        settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))(
            given(mutants())(one_input)
        )()
        return
    try:
        atheris: Any = import_module("atheris")
    except ImportError:
        sys.exit("atheris is not installed: see the top of this file")
    atheris.enabled_hooks.add("RegEx")
    atheris.instrument_all()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
