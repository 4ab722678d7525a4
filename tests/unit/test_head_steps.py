"""The head scanner takes linear time, shown by counting: its expressions are run by a backtracking matcher that counts.

Python's engine can't say how many steps a match took, and a clock says it only on a quiet machine. So the parsed
expressions, the same that the engine compiles, are interpreted here in the most naive way: each look at a byte is a
step, and a failure really goes back through every choice that is left. The engine can only do better.
"""

import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
from hypothesis import given, settings

from pyttpd import head

from conformance.heads import mutants

_parser: Any = import_module("re._parser")  # without types, but the same in 3.11 to 3.13
c: Any = import_module("re._constants")

COMPILED: dict[str, Any] = {
    name: value
    for name, value in vars(head).items()
    if hasattr(value, "fullmatch") and hasattr(value, "pattern")
}
# the same grammar with the default bounds, and with the least that can be configured
for _bounds, _suffix in ((head.DEFAULT_BOUNDS, ""), (head.bounds_of(256, 8), "_LEAST")):
    COMPILED |= {
        f"_HEAD{_suffix}": _bounds.head,
        f"_MANY{_suffix}": _bounds.many,
        f"_OPEN{_suffix}": _bounds.open,
    }
EXPRESSIONS = {
    name: value.pattern if isinstance(value.pattern, bytes) else value.pattern.encode()
    for name, value in COMPILED.items()
}


class Matcher:
    """A backtracking matcher for what the scanner's expressions use. `steps` counts the looks at a byte."""

    def __init__(self, pattern: bytes) -> None:
        tree = _parser.parse(pattern)
        self.tree = list(tree)
        self.data = b""
        self.steps = 0
        self.groups: dict[int, tuple[int, int]] = {}

    def match(self, data: bytes) -> int | None:
        """The end of the match at the start of `data`."""
        self.data, self.steps, self.groups = data, 0, {}
        return next(self._sequence(self.tree, 0, 0), None)

    def _sequence(self, nodes: list[Any], index: int, at: int) -> Iterator[int]:
        # Nodes with one way only are done in a loop, so that the depth is that of the choices.
        while index < len(nodes):
            op, arg = nodes[index]
            index += 1
            if op in (c.LITERAL, c.NOT_LITERAL, c.IN):
                if not self._char(op, arg, at):
                    return
                at += 1
            elif op is c.POSSESSIVE_REPEAT:
                low, high, (single,) = arg
                count = 0
                while (high is c.MAXREPEAT or count < high) and self._char(single[0], single[1], at):
                    at += 1
                    count += 1
                if count < low:
                    return
            elif op is c.ATOMIC_GROUP:
                end = next(self._sequence(list(arg), 0, at), None)
                if end is None:
                    return
                at = end
            elif op is c.ASSERT_NOT:
                if next(self._sequence(list(arg[1]), 0, at), None) is not None:
                    return
            elif op is c.FAILURE:
                return
            elif op is c.AT:
                assert arg is c.AT_END_STRING
                self.steps += 1
                if at != len(self.data):
                    return
            else:
                for end in self._choices(op, arg, at):
                    yield from self._sequence(nodes, index, end)
                return
        yield at

    def _choices(self, op: Any, arg: Any, at: int) -> Iterator[int]:
        if op is c.BRANCH:
            for alternative in arg[1]:
                yield from self._sequence(list(alternative), 0, at)
        elif op is c.SUBPATTERN:
            group, add, _, nodes = arg
            fold = bool(add & _parser.SRE_FLAG_IGNORECASE)
            before = self.data
            if fold:
                self.data = self.data.lower()
            for end in self._sequence(list(nodes), 0, at):
                if group is not None:
                    self.groups[group] = (at, end)
                folded, self.data = self.data, before
                yield end
                self.data = folded
            self.groups.pop(group, None)
            self.data = before
        elif op is c.GROUPREF_EXISTS:
            group, yes, no = arg
            yield from self._sequence(list(yes if group in self.groups else no or []), 0, at)
        elif op is c.MAX_REPEAT:
            low, high, nodes = arg
            yield from self._greedy(list(nodes), low, high, at, 0)
        else:
            raise AssertionError(f"not used so far, teach me: {op}")

    def _greedy(self, nodes: list[Any], low: int, high: Any, at: int, count: int) -> Iterator[int]:
        if high is c.MAXREPEAT or count < high:
            for end in self._sequence(nodes, 0, at):
                if end > at:
                    yield from self._greedy(nodes, low, high, end, count + 1)
        if count >= low:
            yield at

    def _char(self, op: Any, arg: Any, at: int) -> bool:
        self.steps += 1
        if at >= len(self.data):
            return False
        byte = self.data[at]
        if op is c.LITERAL:
            return bool(byte == arg)
        if op is c.NOT_LITERAL:
            return bool(byte != arg)
        negate = False
        found = False
        for kind, value in arg:
            if kind is c.NEGATE:
                negate = True
            elif kind is c.LITERAL:
                found = found or byte == value
            else:
                assert kind is c.RANGE
                found = found or value[0] <= byte <= value[1]
        return found is not negate


_LINE = b"GET / HTTP/1.1\r\n"


def evil(size: int) -> list[bytes]:
    """Heads of about `size` bytes that leave a backtracking engine as much to take back as possible."""
    fields = size // 12
    return [
        b"A" * size,
        b"GET /" + b"%41" * (size // 3) + b"%",
        b"GET /" + b"%41a" * (size // 4) + b"? HTTP/1.2\r\n",
        b"GET /" + b"?" * size + b"#",
        b"GET http://" + b"a." * (size // 2) + b"\\",
        b"GET http://" + b"a" * size + b"/#",
        _LINE + b"a" * size,
        _LINE + b"a:" * (size // 2) + b"\x00",
        _LINE + b"a:" + b" \t" * (size // 2) + b"\x00",
        _LINE + b"a: b\r\n" * fields + b"\x00",
        _LINE + b"a: b\r\n" * fields + b"Host: a b\r\n\r\n",
        _LINE + b"Hosts: x\r\n" * fields + b"Host: a\r\n" + b"Content-Lengths: x\r\n" * fields + b" ",
        _LINE
        + b"Host: a\r\n"
        + b"c: d\r\n" * fields
        + b"Content-Length: 1\r\n"
        + b"t: e\r\n" * fields
        + b"Host: a\r\n\r\n",
        _LINE
        + b"x: y\r\n" * fields
        + b"Content-Length: 1\r\n"
        + b"c: d\r\n" * fields
        + b"Host: a\r\n"
        + b"t: e\r\n" * fields
        + b"\n",
        _LINE + b"Host: " + b" " * size + b"a" + b" " * size + b"b\r\n\r\n",
        _LINE + b"Host:" + b"\t" * size,
        _LINE + b"Host: " + b"a" * size + b"\x7f",
        _LINE + b"Content-Length: " + b"1" * size + b"\r\n\r\n",
        _LINE + b"Transfer-Encoding: " + b"chunked," * (size // 8) + b"\r\n\r\n",
        _LINE + b"transfer-encodin: x\r\n" * fields + b"transfer-encoding: chunked\r\n" * 2,
        b"a." * (size // 2) + b"!",
        b"a" * size + b":",
        b"[" + b"1:" * (size // 2),
        b"chunked , " * (size // 10) + b";",
        b"http://" + b"a" * size + b"#",
        b"0x" + b"0" * size + b"g",
    ]


@pytest.fixture(autouse=True, scope="module")
def _deep() -> Iterator[None]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    yield
    sys.setrecursionlimit(before)


def test_all_expressions_are_looked_at() -> None:
    assert {
        "_HEAD",
        "_MANY",
        "_OPEN",
        "_REQUEST_CHARS",
        "_FIELD_CHARS",
        "_ABSOLUTE_FORM",
        "_AUTHORITY",
    } <= set(EXPRESSIONS)


@pytest.mark.parametrize("name", sorted(EXPRESSIONS))
def test_steps_are_linear(name: str) -> None:
    matcher = Matcher(EXPRESSIONS[name])
    compiled = COMPILED[name]
    for data in evil(3000):
        end = matcher.match(data)
        found = compiled.match(data if isinstance(compiled.pattern, bytes) else data.decode("latin-1"))
        assert end == (found.end() if found else None), "the counting matcher is no model of the engine"
        assert matcher.steps <= 4 * len(data) + 200, (matcher.steps, data[:40])


def test_counting_matcher_notices() -> None:
    matcher = Matcher(rb"(?:a|a)*b")
    assert matcher.match(b"a" * 14) is None
    assert matcher.steps > 2**14


@settings(max_examples=100, deadline=None)
@given(mutants())
def test_counting_matcher_is_a_model_of_the_engine(data: bytes) -> None:
    for name in ("_HEAD", "_OPEN", "_MANY"):
        matcher = Matcher(EXPRESSIONS[name])
        found = COMPILED[name].match(data)
        assert matcher.match(data) == (found.end() if found else None)
        for group, span in matcher.groups.items():
            assert found is None or found.span(group) == span
        assert matcher.steps <= 4 * len(data) + 200
