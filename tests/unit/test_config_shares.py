"""Shares: each other's inverse, and strict about everything that comes in."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyttpd.config import limits
from pyttpd.config.checks import ShareError
from pyttpd.config.kinds import KINDS, Mount, StaticOptions, WsgiOptions
from pyttpd.config.shares import (
    HostMap,
    HttpSettings,
    ListenerPeer,
    ListenerShare,
    LogSettings,
    PoolSettings,
    TenantLogs,
    UmasterShare,
    VhostPeer,
    VhostShare,
)

LISTENER = ListenerShare(
    1,
    "http",
    "http",
    32768,
    8192,
    128,
    10.0,
    2.0,
    16384,
    256,
    0.2,
    15.0,
    ("10.0.0.0/8",),
    LogSettings(),
    30.0,
)
UMASTER = UmasterShare(
    1,
    (ListenerPeer("http", 10010, "http", 16384), ListenerPeer("metrics", 10009, "metrics", 16384)),
    (VhostPeer("blog", 20001, 256, 10.0, 256), VhostPeer("shop", 20002, 0, 0.1, 1)),
    LogSettings("debug", "json"),
    0.0,
)
MOUNTS = (
    Mount("/", WsgiOptions("app:application")),
    Mount(
        "/files/größe",
        StaticOptions(
            root="/srv/blog/files",
            index=("index.html", "default.htm"),
            listing=True,
            precompressed=("gzip",),
            cache_control={"assets/**": "max-age=31536000, immutable", "*.html": ""},
            types={".gpx": "application/gpx+xml", ".foo": "text/foo; charset=ascii"},
            charset="",
            symlinks=False,
            cache=0,
        ),
    ),
)
VHOST = VhostShare(
    generation=2**63 - 1,
    name="blog",
    uid=20001,
    gid=20001,
    hosts=("blog.example", "*.blog.example", "[::1]"),
    foreign=("shop.blog.example", "*.wiki.blog.example"),
    default=False,
    root="/srv/blog",
    mounts=MOUNTS,
    python_path=("/lib",),
    env={"DEBUG": "0", "TEXT": "Bj\u00f6rn\n"},
    writable=("/srv/blog/data",),
    allow=("10.5.0.2:5432", "[fd00::2]:6379"),
    pool=PoolSettings(),
    http=HttpSettings(),
    logs=TenantLogs("json", "/var/log/blog/access.log", None, "/var/log/blog/slow.log", 65536),
    log=LogSettings(),
    grace=30.0,
    virtualenv="/srv/blog/.venv",
    preload=False,
    trusted_proxies=("10.0.0.0/8", "::1/128"),
    proxy_headers="forwarded",
    error_pages={"404": "errors/404.html", "5xx": ".sorry.html"},
)
SHARES: list[Any] = [LISTENER, UMASTER, VHOST]
HOSTS = HostMap(
    3,
    {"blog.example": "blog", "[::1]": "blog", "192.0.2.1": "shop"},
    {"blog.example": "blog", "shop.blog.example": "shop", "localhost": "shop"},
    "blog",
)


@pytest.mark.parametrize("share", [*SHARES, HOSTS], ids=lambda share: type(share).__name__)
def test_round_trip(share: Any) -> None:
    data = share.to_json()
    assert type(share).from_json(data) == share
    assert type(share).from_json(memoryview(data)) == share
    assert type(share).from_json(bytearray(data)).to_json() == data


@pytest.mark.parametrize("share", SHARES, ids=lambda share: type(share).__name__)
def test_keys(share: Any) -> None:
    value = json.loads(share.to_json())
    for key in value:
        with pytest.raises(ShareError, match=f"wrong keys \\({key} missing, 0 unknown\\)"):
            type(share).from_json(
                json.dumps({name: each for name, each in value.items() if name != key}).encode()
            )
    with pytest.raises(ShareError, match="1 unknown"):
        type(share).from_json(json.dumps({**value, "secret_text": 1}).encode())


@pytest.mark.parametrize("share", SHARES, ids=lambda share: type(share).__name__)
def test_types(share: Any) -> None:
    """No field takes a value of another JSON type."""
    value = json.loads(share.to_json())
    samples: dict[type, Any] = {int: 10**30, float: 1e300, bool: True, str: "\x1b", list: [[]], dict: {"": 1}}
    for key, right in value.items():
        for kind, sample in {**samples, type(None): None}.items():
            if type(right) is kind and kind is bool:
                continue
            if key in ("application", "virtualenv") and sample is None:
                continue  # refused for another reason, or none
            with pytest.raises(ShareError) as caught:
                type(share).from_json(json.dumps({**value, key: sample}).encode())
            assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generation": 0}, "generation"),
        ({"name": "Blog"}, "name"),
        ({"uid": 20000}, "uid"),
        ({"uid": True}, "uid"),
        ({"gid": 0}, "gid"),
        ({"hosts": ("Blog.example",)}, "hosts"),
        ({"hosts": ("a\nb",)}, "hosts"),
        ({"hosts": ("",)}, "hosts"),
        ({"hosts": (3,)}, "hosts"),
        ({"hosts": "blog.example"}, "hosts"),
        ({"foreign": ("*",)}, "foreign"),
        ({"mounts": ()}, "mounts: must be one at least"),
        ({"mounts": MOUNTS * 2}, "mounts: one of them is there twice"),
        ({"mounts": tuple([Mount(f"/{number}", MOUNTS[0].options) for number in range(65)])}, "mounts"),
        ({"mounts": (Mount("@app", MOUNTS[0].options),)}, "mounts: those with a name must be a fallback"),
        ({"mounts": (Mount("/", StaticOptions("/a", fallback="@app")),)}, "mounts: those with a name"),
        (
            {
                "mounts": (
                    Mount("/", StaticOptions("/a", fallback="@files")),
                    Mount("@files", StaticOptions("/b")),
                )
            },
            "mounts: those with a name",
        ),
        ({"mounts": (3,)}, "mounts: must be objects"),
        ({"mounts": ({"path": "/", "kind": "wsgi"},)}, "mounts: must be objects"),
        ({"mounts": ({"path": "/", "kind": "php", "options": {}},)}, "mounts: must be of a known kind"),
        ({"mounts": ({"path": "/", "kind": ["wsgi"], "options": {}},)}, "mounts: must be of a known kind"),
        ({"mounts": ({"path": "/", "kind": "wsgi", "options": {}},)}, "mounts: wrong keys"),
        ({"mounts": ({"path": "/", "kind": "wsgi", "options": []},)}, "mounts: must be an object"),
        ({"error_pages": {"200": "a"}}, "error_pages"),
        ({"error_pages": {"404": "/a"}}, "error_pages"),
        ({"error_pages": {"404": "a/../b"}}, "error_pages"),
        ({"error_pages": {"404": "a\0"}}, "error_pages"),
        ({"error_pages": {"404": None}}, "error_pages"),
        ({"error_pages": {str(code): "a" for code in range(400, 500)}}, "error_pages"),
        ({"root": "srv"}, "root"),
        ({"root": "/a\0b"}, "root"),
        ({"root": "/" + "a" * 4096}, "root"),
        ({"root": "/\ud800"}, "root"),
        ({"python_path": ("lib",)}, "python_path"),
        ({"python_path": ("/lib",) * 65}, "python_path"),
        ({"virtualenv": ".venv"}, "virtualenv"),
        ({"trusted_proxies": ("10.0.0.1",)}, "trusted_proxies"),
        ({"trusted_proxies": ("10.0.0.1/8",)}, "trusted_proxies"),
        ({"trusted_proxies": (10,)}, "trusted_proxies"),
        ({"trusted_proxies": ("::1/128",) * 257}, "trusted_proxies"),
        ({"proxy_headers": "any"}, "proxy_headers"),
        ({"allow": ("db:5432",)}, "allow"),
        ({"allow": ("10.5.0.02:5432",)}, "allow"),
        ({"allow": (5432,)}, "allow"),
        ({"allow": ("10.5.0.2:5432",) * 17}, "allow"),
        ({"env": {"A=B": "x"}}, "env"),
        ({"env": {"A": "\0"}}, "env"),
        ({"env": {"A": "\ud800"}}, "env"),
        ({"env": {"A": "x" * 65536}}, "env"),
        ({"env": {f"A{number}": "" for number in range(257)}}, "env"),
        ({"grace": float("nan")}, "grace"),
        ({"grace": -1}, "grace"),
        ({"pool": None}, "pool"),
    ],
)
def test_construction_is_as_strict(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ShareError, match=message):
        replace(VHOST, **change)


def test_settings_validate_themselves() -> None:
    with pytest.raises(ShareError):
        PoolSettings(max_workers=0)
    with pytest.raises(ShareError):
        HttpSettings(keepalive=1)  # type: ignore[arg-type]
    for wrong in (
        {"index": ("a/b",)},
        {"index": (".a",)},
        {"index": ("a" * 256,)},
        {"index": ("a",) * 9},
        {"listing": 0},
        {"precompressed": ("gz",)},
        {"precompressed": ("br", "br")},
        {"cache_control": {"": "no-cache"}},
        {"cache_control": {"*": "a\r\nb"}},
        {"cache_control": {"*": 1}},
        {"cache_control": {"*a*b*c*d*": "no-cache"}},
        {"types": {"md": "text/markdown"}},
        {"types": {".md": "markdown"}},
        {"charset": "utf 8"},
        {"symlinks": None},
        {"cache": -1},
        {"fallback": "@"},
        {"fallback": "@App"},
        {"fallback": "/index.html"},
        {"fallback": "../index.html"},
        {"fallback": None},
    ):
        with pytest.raises(ShareError, match=next(iter(wrong))):
            StaticOptions("/srv", **wrong)
    with pytest.raises(ShareError, match="root"):
        StaticOptions("srv")
    for application in ("app", None, "a:b:c", "a b:c", f"a:{'b' * 255}"):
        with pytest.raises(ShareError, match="application"):
            WsgiOptions(application)  # type: ignore[arg-type]
    with pytest.raises(ShareError):
        LogSettings("loud")
    assert HttpSettings(idle_timeout=5).idle_timeout == 5.0
    assert type(HttpSettings(idle_timeout=5).idle_timeout) is float


@pytest.mark.parametrize(
    "path",
    [
        *(
            "",
            "app",
            "//",
            "/app/",
            "/a//b",
            "/./a",
            "/a/..",
            "/a%2Fb",
            "/a b",
            "/a?b",
            "/a#b",
            "/a\\b",
            "/\x7f",
        ),
        *("/\0", "/\n", "/" + "a" * 255, "/\ud800", None, 3, ["/"]),
    ],
)
def test_where_nothing_can_be_mounted(path: Any) -> None:
    with pytest.raises(ShareError, match="path"):
        Mount(path, MOUNTS[0].options)


@pytest.mark.parametrize(
    "path", ["/", "/a", "/a/b.c", "/...", "/.well-known/acme", "/~a;b=c", "/größe", "/" + "a" * 254]
)
def test_where_something_can_be_mounted(path: str) -> None:
    mount = Mount(path, MOUNTS[0].options)
    assert (mount.kind, mount.prefix) == ("wsgi", "" if path == "/" else path)


def test_options_are_of_their_kind() -> None:
    class Wider(WsgiOptions):
        pass

    with pytest.raises(ShareError, match="options"):
        Mount("/", Wider("a:b"))
    for name, entry in KINDS.items():
        assert entry.options.kind == name
        assert {each.name for each in fields(entry.options)} == entry.fields.keys()  # type: ignore[arg-type]


def test_what_a_share_says_of_its_mounts() -> None:
    assert VHOST.python
    assert (VHOST.folders(runs=True), VHOST.folders(runs=False)) == ((), ("/srv/blog/files",))
    plain = replace(VHOST, mounts=(Mount("/", StaticOptions("/srv/blog")),))
    assert (plain.python, plain.folders(runs=True), plain.folders(runs=False)) == (False, (), ())


def test_peers_are_distinct() -> None:
    with pytest.raises(ShareError, match="listeners"):
        replace(UMASTER, listeners=(UMASTER.listeners[0],) * 2)
    with pytest.raises(ShareError, match="vhosts"):
        replace(UMASTER, vhosts=(UMASTER.vhosts[0],) * 2)


@pytest.mark.parametrize("cls", [ListenerShare, UmasterShare, VhostShare, HostMap])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"3",
        b'"text"',
        b"{}",
        b"{",
        b"\xff{}",
        b"[" * 100_000,
        b'{"grace": NaN}',
        b'{"grace": -Infinity}',
        b'{"grace": 1, "grace": 1}',
        b'{"generation": ' + b"9" * 5000 + b"}",
        "{}".encode("utf-16"),
    ],
    ids=range(14),
)
def test_what_is_no_share(cls: Any, data: bytes) -> None:
    with pytest.raises(ShareError):
        cls.from_json(data)


def test_limits_of_size(monkeypatch: pytest.MonkeyPatch) -> None:
    data, hosts = VHOST.to_json(), HOSTS.to_json()
    monkeypatch.setattr(limits, "MAX_SHARE_BYTES", len(data) - 1)
    with pytest.raises(ShareError, match="at most"):
        VhostShare.from_json(data)
    with pytest.raises(ShareError, match="at most"):
        VHOST.to_json()
    monkeypatch.setattr(limits, "MAX_HOST_MAP_BYTES", len(hosts) - 1)
    with pytest.raises(ShareError, match="at most"):
        HostMap.from_json(hosts)


@pytest.mark.parametrize(
    "value",
    [
        {"generation": 1, "default": None},
        {"generation": 1, "default": None, "vhosts": {}, "more": 1},
        {"generation": True, "default": None, "vhosts": {}},
        {"generation": 1, "default": "Blog", "vhosts": {}},
        {"generation": 1, "default": [], "vhosts": {}},
        {"generation": 1, "default": None, "vhosts": []},
        {"generation": 1, "default": None, "vhosts": {"a": "x"}},
        {"generation": 1, "default": None, "vhosts": {"A": ["x"]}},
        {"generation": 1, "default": None, "vhosts": {"a": ["x", "x"]}},
        {"generation": 1, "default": None, "vhosts": {"a": ["x"], "b": ["x"]}},
        {"generation": 1, "default": None, "vhosts": {"a": ["*.x"], "b": ["*.x"]}},
        {"generation": 1, "default": None, "vhosts": {"a": [3]}},
        {"generation": 1, "default": None, "vhosts": {"a": [""]}},
        {"generation": 1, "default": None, "vhosts": {"a": ["*"]}},
        {"generation": 1, "default": None, "vhosts": {"a": ["*."]}},
        {"generation": 1, "default": None, "vhosts": {"a": ["*x"]}},
        {"generation": 1, "default": None, "vhosts": {"a": ["*.*.x"]}},
        {"generation": 1, "default": None, "vhosts": {"a": ["*.[::1]"]}},
        {"generation": 1, "default": None, "vhosts": {"a": ["X"]}},
        {"generation": 1, "default": None, "vhosts": {"a": ["x\ny"]}},
        {"generation": 1, "default": None, "vhosts": {"a": ["x" * 254]}},
    ],
)
def test_what_is_no_host_map(value: Any) -> None:
    with pytest.raises(ShareError):
        HostMap.from_json(json.dumps(value).encode())


def test_host_map_bounds() -> None:
    with pytest.raises(ShareError, match="names"):
        HostMap(1, {f"n{number}": "a" for number in range(100_001)}, {}, None)
    with pytest.raises(ShareError, match="vhosts"):
        HostMap(1, {f"n{number}": f"a{number}" for number in range(10_001)}, {}, None)
    with pytest.raises(ShareError):
        HostMap(1, {"*.a": "a"}, {}, None)
    with pytest.raises(ShareError):
        HostMap(1, {}, {"*.a": "a"}, None)


def test_lookup() -> None:
    assert HOSTS.lookup("blog.example") == ("blog", "exact name")
    assert HOSTS.lookup("x.y.shop.blog.example") == ("shop", "wildcard *.shop.blog.example")
    assert HOSTS.lookup("shop.blog.example") == ("blog", "wildcard *.blog.example")
    assert HOSTS.lookup("localhost") == ("blog", "default vhost")
    assert HOSTS.lookup("a.localhost") == ("shop", "wildcard *.localhost")
    without = replace(HOSTS, default=None)
    assert without.lookup("x") == (None, "nobody owns this name and there is no default vhost")
    assert without.find("") is None


_LABELS = st.sampled_from(["a", "b", "c"])
_NAMES = st.lists(_LABELS, min_size=1, max_size=4).map(".".join)
_OWNED = st.dictionaries(_NAMES, st.sampled_from(["one", "two"]), max_size=8)


@given(_OWNED, _OWNED, st.none() | st.just("three"), st.lists(_LABELS, max_size=7).map(".".join))
@settings(deadline=None)
def test_lookup_is_what_the_rule_says(
    exact: dict[str, str], wildcard: dict[str, str], default: str | None, host: str
) -> None:
    hosts = HostMap(1, exact, wildcard, default)
    under = [suffix for suffix in wildcard if host.endswith(f".{suffix}")]
    expected = exact.get(host) or (wildcard[max(under, key=len)] if under else default)
    assert hosts.find(host) == hosts.lookup(host)[0] == expected
    assert HostMap.from_json(hosts.to_json()) == hosts


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(st.sampled_from(SHARES), st.data(), _JSON)
@settings(deadline=None)
def test_any_value_in_any_field_is_taken_or_refused(share: Any, data: st.DataObject, value: Any) -> None:
    key = data.draw(st.sampled_from([field.name for field in fields(share)]))
    changed = {**json.loads(share.to_json()), key: value}
    try:
        read = type(share).from_json(json.dumps(changed).encode("utf-8", "surrogatepass"))
    except ShareError as error:
        said = str(error)
    else:
        said = ""
        assert type(share).from_json(read.to_json()) == read
    assert not said or said.isprintable()


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_any_bytes_are_refused(data: bytes) -> None:
    for cls in (ListenerShare, UmasterShare, VhostShare, HostMap):
        with pytest.raises(ShareError):
            cls.from_json(data)


# ---- pools: what the keys mean together ----


@pytest.mark.parametrize(
    ("settings", "first", "most_spare", "oldest"),
    [
        ({}, 2, 2, 7200.0),
        ({"mode": "dynamic", "max_workers": 8}, 1, 4, 7200.0),
        ({"mode": "dynamic", "max_workers": 8, "min_spare": 0}, 1, 4, 7200.0),
        ({"mode": "dynamic", "max_workers": 8, "start_workers": 5, "max_spare": 6}, 5, 6, 7200.0),
        ({"mode": "ondemand", "max_age": 0}, 0, 2, 7200.0),
        ({"mode": "ondemand", "start_workers": 1, "max_age": 100.0}, 1, 2, 200.0),
        ({"max_age": 100.0, "hard_age": 100.0}, 2, 2, 100.0),
    ],
)
def test_what_a_pool_leaves_out_follows_from_the_rest(
    settings: dict[str, Any], first: int, most_spare: int, oldest: float
) -> None:
    pool = PoolSettings(**settings)
    assert (pool.first, pool.most_spare, pool.oldest) == (first, most_spare, oldest)


def test_a_pool_that_contradicts_itself_is_no_share() -> None:
    with pytest.raises(ShareError, match="must be at least max_age"):
        PoolSettings(hard_age=1.0)
