"""Shares of two releases that are one wire version apart; and that nobody changes a share's keys without a new version.

tests/golden/shares.json has the keys of each version. To write those of the newest anew (after `VERSION` was raised, or
before its first release): `GOLDEN=write make test ONLY="tests/unit/test_share_versions.py -q"`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyttpd.config import limits, pieces, share_versions, shares
from pyttpd.config.checks import ShareError
from pyttpd.config.kinds import KINDS, Mount
from pyttpd.config.share_versions import ADDED, Added, Withheld, as_of, up_to_date
from pyttpd.config.shares import (
    HostMap,
    ListenerShare,
    LogSettings,
    PoolSettings,
    UmasterShare,
    VhostPeer,
)
from pyttpd.wire.messages import VERSION

GOLDEN = Path(__file__).parents[1] / "golden/shares.json"
SHARES = {"listener": ListenerShare, "umaster": UmasterShare, "vhost": shares.VhostShare}
#: What one of a few words may be: a role refuses one that it doesn't know.
WORDS = (
    "LOG_LEVELS",
    "LOG_FORMATS",
    "POOL_MODES",
    "ENGINES",
    "ACCESS_LOGS",
    "MODES",
    "PROXY_HEADERS",
    "CODINGS",
)


def paths(cls: Any, before: str = "") -> Iterator[str]:
    """Yield the path of each key of a share."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint, path = hints[field.name], f"{before}{field.name}"
        inner = typing.get_args(hint)
        if hint == tuple[Mount, ...]:
            yield f"{path}[].kind"
            yield f"{path}[].path"
            for kind, row in KINDS.items():
                yield from paths(row.options, f"{path}[{kind}].options.")
        elif dataclasses.is_dataclass(hint):
            yield from paths(hint, f"{path}.")
        elif typing.get_origin(hint) is tuple and dataclasses.is_dataclass(inner[0]):
            yield from paths(inner[0], f"{path}[].")
        elif isinstance(hint, types.UnionType) and any(dataclasses.is_dataclass(each) for each in inner):
            raise AssertionError(f"{path}: how is that written?")
        else:
            yield path


def now() -> dict[str, list[str]]:
    found = {share: sorted(paths(cls)) for share, cls in SHARES.items()}
    found["map"] = sorted(json.loads(HostMap(1, {}, {}, None).to_json()))
    found["words"] = sorted(f"{name}: {word}" for name in WORDS for word in getattr(limits, name))
    return found


def test_no_key_of_a_share_changes_without_a_new_version() -> None:
    golden: dict[str, dict[str, list[str]]] = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("GOLDEN") == "write":
        golden[str(VERSION)] = now()
        GOLDEN.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
    # A version that has changed nothing in the shares has no entry.
    newest = max(int(version) for version in golden if int(version) <= VERSION)
    assert now() == golden[str(newest)], (
        f"a share's keys are not those of wire version {newest}: see docs/upgrading.md, For who makes a release"
    )


def test_what_a_version_has_added_is_said_and_nothing_is_taken_away() -> None:
    golden = {int(version): keys for version, keys in json.loads(GOLDEN.read_text()).items()}
    versions = sorted(golden)
    assert set(ADDED) <= set(versions[1:])
    for older, newer in itertools.pairwise(versions):
        said = {(key.share, key.path) for key in ADDED.get(newer, ())}
        added = {
            (share, path)
            for share in ("map", *SHARES)
            for path in set(golden[newer][share]) - set(golden[older][share])
        }
        assert added == said
        if newer == VERSION:
            for share in golden[older]:
                assert set(golden[older][share]) <= set(golden[newer][share]), f"{share}: a key is gone"


# ---- what the next release will do, with keys that this one has ----

LISTENER = ListenerShare(
    1, "http", "http", 32768, 8192, 128, 10.0, 2.0, 1000, 0, 0.2, 5.0, (), LogSettings(), 30.0
)
UMASTER = UmasterShare(
    1, (), (VhostPeer("a", 20001, 5, 1.0, 3), VhostPeer("b", 20002, 5, 1.0, 3)), LogSettings(), 30.0
)


@pytest.fixture
def next_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if these keys were new in the version after ours."""
    keys = (
        Added("listener", "stress_factor", 0.2),
        Added("listener", "log.format", "text"),
        Added("umaster", "vhosts[].handovers", 3),
        Added("vhost", "pool.max_age", 3600.0),
        Added("vhost", "mounts[static].options.cache", 1024),
    )
    monkeypatch.setattr(share_versions, "ADDED", {VERSION + 1: keys})


@pytest.mark.usefixtures("next_release")
def test_an_older_role_gets_no_key_that_it_does_not_know_and_a_newer_one_fills_it_in() -> None:
    written = as_of("listener", LISTENER.to_json(), VERSION)
    value = json.loads(written)
    assert "stress_factor" not in value
    assert value["log"] == {"level": "info"}
    with pytest.raises(ShareError):
        ListenerShare.from_json(written)
    assert ListenerShare.from_json(up_to_date("listener", written, VERSION)) == LISTENER
    # Among those of the same release nothing is touched.
    assert as_of("listener", LISTENER.to_json(), VERSION + 1) == LISTENER.to_json()
    assert up_to_date("listener", written, VERSION + 1) == written


@pytest.mark.usefixtures("next_release")
def test_a_share_with_a_vhost_on_each_line_stays_one() -> None:
    written = as_of("umaster", UMASTER.to_json(), VERSION)
    assert b"handovers" not in written
    whole = up_to_date("umaster", written, VERSION)
    assert pieces.run(pieces.read_umaster(whole), float("inf")) == (True, UMASTER)
    assert UmasterShare.from_json(whole) == UMASTER
    hosts = HostMap(1, {"a.example": "a"}, {"b.example": "b"}, "a")
    assert share_versions._written(json.loads(hosts.to_json())) == hosts.to_json()


@pytest.mark.usefixtures("next_release")
def test_a_share_that_uses_what_is_new_is_withheld_and_says_why() -> None:
    other = dataclasses.replace(LISTENER, stress_factor=0.5)
    with pytest.raises(Withheld, match="stress_factor is new: replace this role first"):
        as_of("listener", other.to_json(), VERSION)
    assert as_of("listener", other.to_json(), VERSION + 1) == other.to_json()


@pytest.mark.usefixtures("next_release")
def test_a_vhosts_mounts_are_found_by_kind() -> None:
    value: dict[str, Any] = {
        "pool": {"max_age": 3600.0, "max_workers": 2},
        "mounts": [
            {"path": "/", "kind": "static", "options": {"root": "/srv", "cache": 1024}},
            {"path": "/x", "kind": "wsgi", "options": {"application": "a:b", "cache": 7}},
        ],
    }
    written = as_of("vhost", json.dumps(value).encode(), VERSION)
    assert [mount["options"] for mount in json.loads(written)["mounts"]] == [
        {"root": "/srv"},
        {"application": "a:b", "cache": 7},
    ]
    assert json.loads(up_to_date("vhost", written, VERSION)) == value
    assert PoolSettings().max_age == 3600.0


@pytest.mark.usefixtures("next_release")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"1",
        b'{"log":3}',
        b'{"log":null}',
        b'{"log":[1]}',
        b'{"log":{"a":1,"a":2}}',
        b"{",
        b"\xff",
        b"[" * 90_000,
    ],
)
def test_what_is_no_share_is_refused_by_whom_it_would_be_without_this(data: bytes) -> None:
    with pytest.raises(ShareError):
        ListenerShare.from_json(up_to_date("listener", data, VERSION))
    with pytest.raises(ShareError):
        UmasterShare.from_json(up_to_date("umaster", data, VERSION))
