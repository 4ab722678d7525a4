"""Whatever is in a file: a Config that keeps its promises, or ConfigErrors that can be shown; never anything else."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyttpd.config.errors import ConfigErrors
from pyttpd.config.keys import Table
from pyttpd.config.lines import LineIndex
from pyttpd.config.loader import load
from pyttpd.config.model import Config
from pyttpd.config.schema import SCHEMA
from pyttpd.config.shares import HostMap, ListenerShare, UmasterShare, VhostShare


def _load(text: str | bytes) -> Config | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pyttpd.toml"
        path.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
        try:
            return load(folder)
        except ConfigErrors as errors:
            found = errors.errors
    assert found
    for error in found:
        assert str(error).isprintable()
        assert error.line is None or error.line >= 1
    return None


def _keeps_its_promises(config: Config) -> None:
    for listener in config.listeners:
        share = config.share_for_listener(listener.name)
        assert ListenerShare.from_json(share.to_json()) == share
    umaster = config.share_for_umaster()
    assert UmasterShare.from_json(umaster.to_json()) == umaster
    hosts = config.host_map()
    assert HostMap.from_json(hosts.to_json()) == hosts
    for vhost in config.vhosts:
        tenant = config.share_for_vhost(vhost.name)
        assert VhostShare.from_json(tenant.to_json()) == tenant
        for host in vhost.hosts:
            assert hosts.find(host.replace("*", "some")) == vhost.name or host.startswith("*.")


_VALUES = st.one_of(
    st.integers(-10, 70000),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.text(max_size=20),
    st.sampled_from(
        [
            "static",
            "wsgi",
            "app:application",
            "/srv",
            "0.0.0.0:80",
            "[::]:81",
            "127.0.0.1",
            "info",
            "json",
            "llhttp",
        ]
    ),
    st.lists(
        st.sampled_from(["a.example", "*.example", "*.a.example", "b.example", "x", "[::1]", "10.0.0.1"]),
        max_size=3,
    ),
    st.lists(st.text(max_size=5) | st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.integers(), max_size=2),
)


def _toml(value: Any) -> str:
    """Write a value as TOML; JSON's strings are TOML's, but for surrogates and DEL."""
    match value:
        case bool():
            return "true" if value else "false"
        case float():
            return str(value).replace("e+", "e")
        case int():
            return str(value)
        case str():
            return json.dumps(value.encode("utf-8", "replace").decode(), ensure_ascii=False).replace(
                "\x7f", "\\u007f"
            )
        case list():
            return f"[{', '.join([_toml(item) for item in value])}]"
        case _:
            return f"{{ {', '.join([f'{_toml(key)} = {_toml(item)}' for key, item in value.items()])} }}"


@st.composite
def _tables(draw: st.DrawFn, table: Table, path: str) -> str:
    keys = draw(
        st.lists(
            st.sampled_from([key.name for key in table.keys]) | st.just("other"), unique=True, max_size=12
        )
    )
    lines = [f"[{path}]"] if path else []
    lines += [f"{name} = {_toml(draw(_VALUES))}" for name in keys]
    return "\n".join([*lines, ""])


@st.composite
def _files(draw: st.DrawFn) -> str:
    tables = [
        (path.replace("NAME", name), table) for path, table in SCHEMA.walk() for name in ("a", "b", "Bad")
    ]
    chosen = draw(st.lists(st.sampled_from(tables), unique_by=lambda each: each[0], max_size=6))
    return "\n".join(
        [draw(_tables(table, path)) for path, table in sorted(chosen, key=lambda each: each[0] != "")]
    )


@given(_files())
@settings(deadline=None, max_examples=300)
def test_any_tables(text: str) -> None:
    config = _load(text)
    if config is not None:
        _keeps_its_promises(config)


_GOOD = """
[listen.http]
address = "0.0.0.0:80"
[vhost.a]
hosts = ["a.example", "*.a.example"]
default = true
uid = 20001
kind = "wsgi"
root = "/srv/a"
application = "app:app"
[vhost.b]
hosts = ["b.a.example"]
uid = 20002
kind = "static"
root = "b"
"""


@given(st.sampled_from([(path, key.name) for path, table in SCHEMA.walk() for key in table.keys]), _VALUES)
@settings(deadline=None, max_examples=300)
def test_one_value_of_a_good_file(place: tuple[str, str], value: Any) -> None:
    path, name = place
    lines = [
        line for line in _GOOD.split("\n") if not (path == "vhost.NAME" and line.startswith(f"{name} = "))
    ]
    header = f"[{path.replace('NAME', 'a' if path.startswith('vhost') else 'http')}]"
    if header in lines:
        lines.insert(lines.index(header) + 1, f"{name} = {_toml(value)}")
    elif path:
        lines += [header, f"{name} = {_toml(value)}"]
    else:
        lines.insert(0, f"{name} = {_toml(value)}")
    config = _load("\n".join(lines))
    if config is not None:
        _keeps_its_promises(config)


@given(st.text())
@example("a = 1\r\n[b]")
@example("\ufeff")
@example('["\\\\"]\n"=" = 1')
@settings(deadline=None)
def test_any_text(text: str) -> None:
    _load(text)
    index = LineIndex(text)
    assert index.find(("a", "b"), "x") is None or text


@given(st.binary())
@settings(deadline=None)
def test_any_bytes(data: bytes) -> None:
    _load(data)


@given(st.text(alphabet="[]\"'=.\\\n a#", max_size=60))
@settings(deadline=None)
def test_any_lines(text: str) -> None:
    _load(text)
    LineIndex(text)


def test_good_is_good() -> None:
    config = _load(_GOOD)
    assert config is not None
    _keeps_its_promises(config)
