"""Fuzz whole messages, by hand: both engines of the vhost, and h11 and llhttp by themselves.

    PYTHONPATH=src:services/vhost/src:tests python fuzz/fuzz_messages.py [folder with a corpus] [libFuzzer's options]
    PYTHONPATH=src:services/vhost/src:tests python fuzz/fuzz_messages.py --hypothesis 10000   (needs no atheris)

What must hold for any bytes is said in tests/conformance/message_oracles.py; beyond that, what an engine reads of a
prefix is what it reads of the whole, and refused once is refused for good.
"""

import sys
from importlib import import_module
from typing import Any

from hypothesis import HealthCheck, given, settings

from conformance.message_oracles import disagreement, read
from conformance.messages import streams
from pyttpd_vhost.http.h11 import H11Engine
from pyttpd_vhost.http.llhttp import LlhttpEngine

#: Prefixes that are tried of each input: all would make long inputs too slow.
PREFIXES = 16


class Fault(AssertionError):
    """Somebody broke a promise."""


def one_input(data: bytes) -> None:
    if wrong := disagreement(data):
        raise Fault(wrong)
    for engine in (LlhttpEngine, H11Engine):
        whole = read(data, engine())
        for size in range(0, len(data), max(1, len(data) // PREFIXES)):
            early = read(data[:size], engine())
            if early.messages != whole.messages[: len(early.messages)]:
                raise Fault(f"the first {size} bytes are other messages")
            if early.status not in (0, whole.status):
                raise Fault(f"the first {size} bytes: {early.reason}, all of them: {whole.reason}")


def main() -> None:
    if sys.argv[1:2] == ["--hypothesis"]:
        count = int(sys.argv[2])
        settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))(
            given(streams())(one_input)
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
