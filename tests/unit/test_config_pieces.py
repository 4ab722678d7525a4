"""umaster's share and the host map read a piece at a time: as they are read in one go, or refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from pyttpd.config.checks import ShareError
from pyttpd.config.pieces import Steps, read_map, read_umaster, run
from pyttpd.config.shares import HostMap, ListenerPeer, LogSettings, UmasterShare, VhostPeer

MAP = HostMap(
    3,
    {"a.example": "a", "b.example": "b", "c.b.example": "b"},
    {"x.y.a.example": "a", "b.example": "b"},
    "a",
)
SHARE = UmasterShare(
    3,
    (ListenerPeer("http", 10010, "http", 16384),),
    tuple(VhostPeer(f"v{number}", 20001 + number, 256, 10.0, 256) for number in range(5)),
    LogSettings(),
    30.0,
)
EMPTY = (HostMap(1, {}, {}, None), UmasterShare(1, (), (), LogSettings(), 0.0))


def whole(steps: Steps[Any]) -> tuple[int, Any]:
    """Run it step by step; return how many there were, and what it came to."""
    for count in itertools.count():
        done, found = run(steps, 0.0)
        if done:
            return count, found
    raise AssertionError


@pytest.mark.parametrize("value", [MAP, SHARE, *EMPTY], ids=["map", "share", "empty map", "empty share"])
def test_pieces_come_to_the_same_as_the_whole(value: Any) -> None:
    data = value.to_json()
    read: Any = read_map if isinstance(value, HostMap) else read_umaster
    steps, found = whole(read(data))
    assert found == value == type(value).from_json(data)
    assert steps == data.count(b"\n") - 1 if value not in EMPTY else steps == 0
    if isinstance(value, HostMap):
        for host in ("a.example", "z.x.y.a.example", "q.b.example", "b.example", "", "other"):
            assert found.find(host) == value.find(host)
            assert found.lookup(host) == value.lookup(host)


def test_it_stops_when_its_time_is_up_and_goes_on_where_it_was() -> None:
    steps = read_umaster(SHARE.to_json())
    assert run(steps, 0.0) == (False, None)
    assert run(steps, 60.0) == (True, SHARE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"}}", b"}"),
        (b"\n", b" "),
        (b"],\n", b"]\n"),
        (b'"b":[', b'"a":['),
        (b'"b.example"', b'"a.example"'),
        (b'"b.example"', b'"B.example"'),
        (b'"b.example"', b"3"),
        (b'"b":[', b'"B":['),
        (b'"b":[', b'"b":{},"c":['),
        (b'"generation":3', b'"generation":0'),
        (b'"default":"a"', b'"default":"A"'),
        (b'"b.example"', b'"b.example\\u0000"'),
        (b'["a.example"', b'[["a.example"]'),
    ],
)
def test_a_map_that_is_none(old: bytes, new: bytes) -> None:
    data = MAP.to_json()
    assert old in data
    changed = data.replace(old, new)
    if b'"a":[' in new:  # twice the same vhost is no key twice here, but the names of one
        assert whole(read_map(changed))[1].find("b.example") == "a"
        return
    with pytest.raises(ShareError):
        whole(read_map(changed))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"]}", b"}"),
        (b"},\n", b"}\n"),
        (b'"v1"', b'"v0"'),
        (b'"uid":20002', b'"uid":0'),
        (b'"uid":20002', b'"uid":20002,"more":1'),
        (b'"name":"v1"', b'"name":"v1","name":"v1"'),
        (b'"grace":30.0', b'"grace":-1'),
        (b'"name":"v1"', b'"name":["v1"]'),
    ],
)
def test_a_share_that_is_none(old: bytes, new: bytes) -> None:
    data = SHARE.to_json()
    assert old in data
    with pytest.raises(ShareError):
        whole(read_umaster(data.replace(old, new)))


@pytest.mark.parametrize("data", [b"", b"{}", b"\n", b"\xff\n}}", b"[\n]}", b"null\n}}"])
def test_what_is_neither(data: bytes) -> None:
    for read in (read_map, read_umaster):
        steps: Any = read(data)
        with pytest.raises(ShareError):
            whole(steps)
