"""Valid configurations: what comes out, what each role is given of it, and that it is quick for a large tree."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pyttpd.address import Address
from pyttpd.config.document import document
from pyttpd.config.kind_keys import KIND_TABLES
from pyttpd.config.kinds import (
    AsgiOptions,
    CgiOptions,
    FastcgiOptions,
    HandoffOptions,
    Mount,
    ScgiOptions,
    StaticOptions,
    WsgiOptions,
)
from pyttpd.config.loader import load, load_located
from pyttpd.config.model import foreign_names
from pyttpd.config.schema import SCHEMA
from pyttpd.config.shares import (
    HostMap,
    ListenerShare,
    LogSettings,
    TenantLogs,
    UmasterShare,
    VhostShare,
)
from pyttpd.roles import ROLES, Role

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]

FULL = """
include = "conf.d/*.toml"
runtime_dir = "run"
admin_gid = 4
grace = 5

[log]
level = "debug"
format = "json"

[metrics]
address = "::1"
base_port = 9200

[listen.http]
address = "0.0.0.0:80"
backlog = 10
uid = 10050
head_limit = 1024
request_line_limit = 256
max_headers = 8
head_timeout = 1
linger_timeout = 0
max_connections = 5
max_unnamed_per_client = 3
stress_factor = 1
handover_timeout = 2.5
proxy_protocol = ["10.0.0.5", "2001:db8::/32"]
metrics_port = 9300

[listen.six]
address = "[::0]:80"

[vhost.blog]
hosts = ["Blog.example", "*.blog.example", "[::1]", "192.0.2.1"]
default = true
uid = 20001
gid = 20009
kind = "wsgi"
root = "../srv/./blog"
application = "blog.site:app.wsgi"
python_path = ["//lib", "venv/lib"]
env = { DEBUG = "0", NAME = "Bj\u00f6rn\\n" }
writable = ["data"]
access_log = "json"
access_log_file = "logs/access.log"
error_log_file = "/var/log/blog/error.log"
slow_log_file = "/var/log/blog/slow.log"
log_file_limit = 65536
log_level = "warning"
virtualenv = "venv"
preload = false
trusted_proxies = ["10.0.0.5", "10.1.0.0/16", "2001:DB8::/32", "::1"]
proxy_headers = "forwarded"
allow = ["10.5.0.2:5432", "[FD00::02]:6379"]
error_pages = { 404 = "errors/404.html", 5xx = ".sorry.html" }

[vhost.blog.pool]
max_workers = 8
max_requests = 10_000
max_threads = 4
thread_wait = 0.02
thread_idle = 60
slow_request = 0
request_timeout = 20.5
mode = "dynamic"
start_workers = 3
min_spare = 2
max_spare = 4
idle_timeout = 30
max_age = 600
hard_age = 900
max_memory = 268_435_456
max_cpu = 60
max_processes = 500

[vhost.blog.queue]
limit = 0
timeout = 1.5
handovers = 1

[vhost.blog.http]
head_limit = 65536
request_line_limit = 65536
max_headers = 1000
body_limit = 0
body_buffer = 0
head_timeout = 1
idle_timeout = 2
write_timeout = 3
read_timeout = 4
min_body_rate = 0
min_read_rate = 1000
rate_grace = 0
stress_factor = 0.5
max_connections_per_client = 6
max_keepalive_requests = 5
keepalive = false
engine = "llhttp"
"""

SHOP = """
[vhost.shop]
hosts = ["shop.blog.example", "*.shop.blog.example", "x.shop.blog.example"]
uid = 20002
share_uid = true
kind = "static"
root = "site"
[vhost.shop.static]
index = ["index.html", "default.htm"]
listing = true
precompressed = ["gzip"]
cache_control = { "assets/**" = "max-age=31536000, immutable", "*.html" = "" }
types = { gpx = "application/gpx+xml", ".FOO" = "text/foo; charset=ascii" }
charset = ""
symlinks = false
cache = 0
[vhost.shop-two]
hosts = ["y.shop.blog.example", "other.example"]
uid = 20002
share_uid = true
root = "site"
[[vhost.shop-two.mount]]
path = "/"
kind = "wsgi"
application = "shop:app"
[[vhost.shop-two.mount]]
path = "/bilder/größe"
kind = "static"
root = "pictures"
index = ["index.html", "default.htm"]
listing = true
precompressed = ["gzip"]
cache_control = { "assets/**" = "max-age=31536000, immutable", "*.html" = "" }
charset = ""
symlinks = false
cache = 0
[vhost.shop-two.mount.types]
gpx = "application/gpx+xml"
".FOO" = "text/foo; charset=ascii"
[[vhost.shop-two.mount]]
path = "/own"
kind = "static"
root = "public"
charset = "ascii"
fallback = "@rest"
[[vhost.shop-two.mount]]
path = "@rest"
kind = "wsgi"
application = "shop:rest"
[[vhost.shop-two.mount]]
path = "/live"
kind = "asgi"
application = "live:app"
lifespan = "on"
event_loop = "uvloop"
max_concurrency = 50
websockets = false
websocket_max_size = 2000
websocket_ping = 5
websocket_idle = 60
websocket_compression = false
[[vhost.shop-two.mount]]
path = "/cgi-bin"
kind = "cgi"
root = "programs"
script = "/usr/lib/git-core/git-http-backend"
index = ["index.cgi"]
handlers = { pl = "/usr/bin/perl", ".PHP" = "/usr/bin/php-cgi" }
env = { GIT_PROJECT_ROOT = "/srv/git" }
suexec = false
timeout = 1.5
max_time = 0
max_cpu = 5
max_memory = 1073741824
max_processes = 30
max_output = 4096
[[vhost.shop-two.mount]]
path = "/chat"
kind = "handoff"
command = ["/usr/bin/node", "chat.js"]
processes = 3
mode = "dynamic"
min_spare = 2
max_spare = 3
idle_timeout = 5
max_requests = 100
max_age = 60
max_memory = 268435456
accept_timeout = 2.5
max_channels = 4
[[vhost.shop-two.mount]]
path = "/game"
kind = "handoff"
socket = "game.sock"
[[vhost.shop-two.mount]]
path = "/php"
kind = "fastcgi"
command = ["php-cgi", "-d", "x=y"]
processes = 3
mode = "dynamic"
min_spare = 2
max_spare = 3
idle_timeout = 7
max_requests = 8
max_age = 9
max_memory = 100000000
params = { APP = "live" }
connect_timeout = 4
read_timeout = 6
root = "php"
scripts = [".php", ".phtml"]
index = ["index.php"]
front_controller = "index.php"
files = false
keep_connections = 0
[[vhost.shop-two.mount]]
path = "/scgi"
kind = "scgi"
socket = "run/scgi.sock"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "etc" / "conf.d").mkdir(parents=True)
    (tmp_path / "etc" / "pyttpd.toml").write_text(FULL)
    (tmp_path / "etc" / "conf.d" / "shop.toml").write_text(SHOP)
    (tmp_path / "etc" / "conf.d" / ".shop.toml.swp").write_text("not TOML")
    return tmp_path / "etc"


def test_everything_that_can_be_written(folder: Path) -> None:
    php = FastcgiOptions(
        command=("php-cgi", "-d", "x=y"),
        processes=3,
        mode="dynamic",
        min_spare=2,
        max_spare=3,
        idle_timeout=7.0,
        max_requests=8,
        max_age=9.0,
        max_memory=100_000_000,
        params={"APP": "live"},
        connect_timeout=4.0,
        read_timeout=6.0,
        root=str(folder / "conf.d" / "php"),
        scripts=(".php", ".phtml"),
        index=("index.php",),
        front_controller="index.php",
        files=False,
        keep_connections=0,
    )
    config = load(folder, generation=7)
    assert config == load(folder / "pyttpd.toml", generation=7)
    assert config.file == str(folder / "pyttpd.toml")
    assert (config.runtime_dir, config.grace) == (str(folder / "run"), 5.0)
    assert (config.log.level, config.log.format) == ("debug", "json")
    assert (config.metrics.address, config.metrics.base_port) == ("::1", 9200)
    assert (config.metrics.port_of(Role.UMASTER), config.metrics.port_of(Role.LISTENER)) == (9202, 9203)
    assert (config.metrics.listener_port, config.metrics.tenants_port) == (9209, 9210)
    with pytest.raises(ValueError, match="one port"):
        config.metrics.port_of(Role.VHOST)

    http, six, metrics = config.listeners
    assert (http.name, http.mode, http.address, http.backlog, http.uid) == (
        "http",
        "http",
        Address("0.0.0.0", 80),
        10,
        10050,
    )
    assert (http.head_limit, http.head_timeout, http.linger_timeout) == (1024, 1.0, 0.0)
    assert (http.request_line_limit, http.max_headers) == (256, 8)
    assert (http.max_unnamed_per_client, http.stress_factor) == (3, 1.0)
    assert (http.max_connections, http.handover_timeout, http.metrics_port) == (5, 2.5, 9300)
    assert (http.proxy_protocol, six.proxy_protocol) == (("10.0.0.5/32", "2001:db8::/32"), ())
    assert (str(six.address), six.uid, six.metrics_port) == ("[::]:80", 10011, 9204)
    assert (six.max_connections, six.max_unnamed_per_client) == (16384, 12288)
    assert (metrics.name, metrics.mode, str(metrics.address), metrics.uid) == (
        "metrics",
        "metrics",
        "[::1]:9210",
        10009,
    )
    assert metrics.metrics_port == 9209
    assert config.listener("six") is six

    blog = config.vhost("blog")
    assert blog.hosts == ("blog.example", "*.blog.example", "[::1]", "192.0.2.1")
    assert (blog.default, blog.uid, blog.gid, blog.share_uid) == (True, 20001, 20009, False)
    assert blog.root == str(folder.parent / "srv" / "blog")
    assert (blog.mounts, blog.shorthand) == ((Mount("/", WsgiOptions("blog.site:app.wsgi")),), True)
    assert blog.python_path == ("/lib", str(folder / "venv" / "lib"))
    assert blog.writable == (str(folder / "data"),)
    assert blog.access_log == "json"
    assert blog.log_files == (
        str(folder / "logs/access.log"),
        "/var/log/blog/error.log",
        "/var/log/blog/slow.log",
    )
    assert (blog.log_file_limit, blog.log_level) == (65536, "warning")
    share = config.share_for_vhost("blog")
    assert share.logs == TenantLogs("json", *blog.log_files, 65536)
    assert share.log == LogSettings("warning", "json")
    assert config.share_for_vhost("shop").log == config.log
    assert (blog.virtualenv, blog.preload) == (str(folder / "venv"), False)
    assert blog.trusted_proxies == ("10.0.0.5/32", "10.1.0.0/16", "2001:db8::/32", "::1/128")
    assert blog.proxy_headers == "forwarded"
    assert blog.allow == (Address("10.5.0.2", 5432), Address("fd00::2", 6379))
    assert config.share_for_vhost("blog").allow == ("10.5.0.2:5432", "[fd00::2]:6379")
    assert blog.env == {"DEBUG": "0", "NAME": "Bj\u00f6rn\n"}
    assert (blog.pool.max_workers, blog.pool.max_requests) == (8, 10000)
    assert (blog.pool.max_threads, blog.pool.thread_wait, blog.pool.thread_idle) == (4, 0.02, 60.0)
    assert (blog.pool.slow_request, blog.pool.request_timeout) == (0.0, 20.5)
    assert (blog.pool.mode, blog.pool.start_workers, blog.pool.min_spare) == ("dynamic", 3, 2)
    assert (blog.pool.max_spare, blog.pool.idle_timeout) == (4, 30.0)
    assert (blog.pool.max_age, blog.pool.hard_age) == (600.0, 900.0)
    assert (blog.pool.max_memory, blog.pool.max_cpu, blog.pool.processes) == (268435456, 60.0, 500)
    assert (blog.queue.limit, blog.queue.timeout, blog.queue.handovers) == (0, 1.5, 1)
    assert (blog.http.head_limit, blog.http.body_limit, blog.http.keepalive) == (65536, 0, False)
    assert (blog.http.read_timeout, blog.http.max_keepalive_requests) == (4.0, 5)
    assert blog.error_pages == {"404": "errors/404.html", "5xx": ".sorry.html"}
    shop, two = config.vhost("shop"), config.vhost("shop-two")
    options = StaticOptions(
        root=shop.root,
        index=("index.html", "default.htm"),
        listing=True,
        precompressed=("gzip",),
        cache_control={"assets/**": "max-age=31536000, immutable", "*.html": ""},
        types={".gpx": "application/gpx+xml", ".foo": "text/foo; charset=ascii"},
        charset="",
        symlinks=False,
        cache=0,
    )
    programs = CgiOptions(
        str(folder / "conf.d" / "programs"),
        script="/usr/lib/git-core/git-http-backend",
        index=("index.cgi",),
        handlers={".pl": "/usr/bin/perl", ".PHP": "/usr/bin/php-cgi"},
        env={"GIT_PROJECT_ROOT": "/srv/git"},
        suexec=False,
        timeout=1.5,
        max_time=0.0,
        max_cpu=5,
        max_memory=1 << 30,
        max_processes=30,
        max_output=4096,
    )
    chat = HandoffOptions(
        command=("/usr/bin/node", "chat.js"),
        processes=3,
        mode="dynamic",
        min_spare=2,
        max_spare=3,
        idle_timeout=5.0,
        max_requests=100,
        max_age=60.0,
        max_memory=268435456,
        accept_timeout=2.5,
        max_channels=4,
    )
    assert shop.mounts == (Mount("/", options),)
    assert (two.mounts, two.shorthand) == (
        (
            Mount("/", WsgiOptions("shop:app")),
            Mount("/bilder/größe", replace(options, root=str(folder / "conf.d" / "pictures"))),
            Mount(
                "/own", StaticOptions(str(folder / "conf.d" / "public"), charset="ascii", fallback="@rest")
            ),
            Mount("@rest", WsgiOptions("shop:rest")),
            Mount("/live", AsgiOptions("live:app", "on", "uvloop", 50, False, 2000, 5.0, 60.0, False)),
            Mount("/cgi-bin", programs),
            Mount("/chat", chat),
            Mount("/game", HandoffOptions(socket=str(folder / "conf.d" / "game.sock"))),
            Mount("/php", php),
            Mount("/scgi", ScgiOptions(socket=str(folder / "conf.d" / "run/scgi.sock"))),
        ),
        False,
    )
    assert (blog.http.request_line_limit, blog.http.max_headers, blog.http.body_buffer) == (65536, 1000, 0)
    assert (blog.http.min_body_rate, blog.http.min_read_rate, blog.http.rate_grace) == (0, 1000, 0.0)
    assert (blog.http.stress_factor, blog.http.max_connections_per_client) == (0.5, 6)
    # relative to the file that it is written in
    assert config.vhost("shop").root == str(folder / "conf.d" / "site")
    assert config.vhost("shop").gid == 20002
    assert [vhost.name for vhost in config.vhosts] == ["blog", "shop", "shop-two"]


def test_every_key_of_the_schema_is_written_in_the_test() -> None:
    for table in (*[table for _, table in SCHEMA.walk()], *KIND_TABLES.values()):
        for key in table.keys:
            assert f"\n{key.name} = " in FULL + SHOP, key.name


def test_defaults_are_the_schema_s(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        '[listen.http]\naddress = "127.0.0.1:80"\n'
        '[vhost.a]\ndefault = true\nuid = 20001\nkind = "static"\nroot = "."\n'
    )
    config = load(tmp_path / "a.toml")
    vhost = config.vhost("a")
    places = {"": config, "log": config.log, "metrics": config.metrics, "listen.NAME": config.listeners[0]}
    places |= {"vhost.NAME": vhost, "vhost.NAME.pool": vhost.pool}
    places |= {"vhost.NAME.queue": vhost.queue, "vhost.NAME.http": vhost.http}
    places |= {"vhost.NAME.static": vhost.mounts[0].options, "vhost.NAME.cgi": CgiOptions("/")}
    places |= {"vhost.NAME.handoff": HandoffOptions(socket="/")}
    places |= {"vhost.NAME.asgi": AsgiOptions("app:app")}
    places |= {
        "vhost.NAME.fastcgi": FastcgiOptions(root="/", socket="/a"),
        "vhost.NAME.scgi": ScgiOptions(socket="/a"),
    }
    for path, table in SCHEMA.walk():
        for key in table.keys:
            if isinstance(key.default, str | int | float | bool) and key.name != "default":
                assert getattr(places[path], key.name) == key.default, (path, key.name)


def test_the_example_of_a_hand_off_is_valid() -> None:
    (mount,) = load(ROOT / "examples/handoff/pyttpd.toml").vhost("handoff").mounts
    assert mount.options == HandoffOptions(command=("python3", "app.py"), processes=2)


def test_the_example_is_valid() -> None:
    config = load(ROOT / "examples" / "pyttpd.toml")
    assert str(config.listener("http").address) == "127.0.0.1:8080"
    assert config.host_map().exact == {"static.localhost": "static", "wsgi.localhost": "wsgi"}
    assert config.vhost("static").root == str(ROOT / "examples" / "static" / "site")


def test_the_document_is_the_schema_s() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == document(), "run: make docs"


def test_shares_hold_what_the_role_needs_and_nothing_else(folder: Path) -> None:
    config = load(folder, generation=7)
    listener = config.share_for_listener("http")
    assert ListenerShare.from_json(listener.to_json()) == listener
    assert (listener.generation, listener.name, listener.mode, listener.grace) == (7, "http", "http", 5.0)
    assert config.share_for_listener("metrics").mode == "metrics"
    umaster = config.share_for_umaster()
    assert UmasterShare.from_json(umaster.to_json()) == umaster
    assert [(peer.name, peer.uid, peer.mode) for peer in umaster.listeners] == [
        ("http", 10050, "http"),
        ("six", 10011, "http"),
        ("metrics", 10009, "metrics"),
    ]
    assert (umaster.vhosts[0].queue_limit, umaster.vhosts[0].queue_timeout, umaster.vhosts[0].handovers) == (
        0,
        1.5,
        1,
    )
    blog, shop = config.share_for_vhost("blog"), config.share_for_vhost("shop")
    assert VhostShare.from_json(blog.to_json()) == blog
    assert blog.foreign == ("shop.blog.example", "*.shop.blog.example")
    assert shop.foreign == ("y.shop.blog.example",)
    # No share tells a tenant or a listener another tenant's names, paths or variables.
    assert b"srv/blog" not in umaster.to_json()
    assert b"blog" not in listener.to_json()
    assert b"other.example" not in blog.to_json()
    assert b"20001" not in shop.to_json()
    for name in ("share_for_listener", "share_for_vhost"):
        with pytest.raises(KeyError):
            getattr(config, name)("nobody")


def test_the_longest_wildcard_wins(folder: Path) -> None:
    hosts = load(folder).host_map()
    assert hosts.lookup("blog.example") == ("blog", "exact name")
    assert hosts.lookup("shop.blog.example") == ("shop", "exact name")
    assert hosts.lookup("a.b.blog.example") == ("blog", "wildcard *.blog.example")
    assert hosts.lookup("a.b.shop.blog.example") == ("shop", "wildcard *.shop.blog.example")
    assert hosts.lookup("y.shop.blog.example") == ("shop-two", "exact name")
    assert hosts.lookup("unknown.example") == ("blog", "default vhost")
    assert hosts.lookup("") == ("blog", "default vhost")


def test_foreign_names_without_wildcards() -> None:
    assert foreign_names(HostMap(1, {"a.example": "a"}, {}, None)) == {}


def test_the_digest_tells_contents_apart(folder: Path) -> None:
    before = load(folder).digest
    assert before == load(folder).digest
    shop = folder / "conf.d" / "shop.toml"
    shop.write_text(shop.read_text() + "# a comment\n")
    changed = load(folder).digest
    assert changed != before
    shop.rename(folder / "conf.d" / "zzz.toml")
    assert load(folder).digest not in (before, changed)


def test_where_things_are_written(folder: Path) -> None:
    _, locate = load_located(folder)
    file, line = locate(("vhost", "shop", "root"))
    assert (file, line) == (str(folder / "conf.d" / "shop.toml"), 7)
    assert locate(("log", "level")) == (str(folder / "pyttpd.toml"), 8)
    assert locate(("grace",)) == (str(folder / "pyttpd.toml"), 5)


def test_a_folder_is_included_with_its_files(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('include = "tenants"\n[listen.http]\naddress = "0.0.0.0:80"\n')
    (tmp_path / "tenants").mkdir()
    assert load(tmp_path / "a.toml").vhosts == ()
    for number, name in enumerate(("b.toml", "a.toml", "notes.txt", ".c.toml")):
        text = f'[vhost.{name[0] if name[0] != "." else "c"}]\nhosts = ["{number}.example"]\nuid = {20001 + number}\n'
        (tmp_path / "tenants" / name).write_text(text + 'kind = "static"\nroot = "site"\n')
    config = load(tmp_path / "a.toml")
    assert [vhost.name for vhost in config.vhosts] == ["a", "b"]
    assert config.vhost("a").root == str(tmp_path / "tenants" / "site")


def test_a_file_is_not_included_twice_or_by_itself(tmp_path: Path) -> None:
    (tmp_path / "pyttpd.toml").write_text(
        'include = ["*.toml", "b.toml"]\n[listen.http]\naddress = "0.0.0.0:80"\n'
    )
    (tmp_path / "b.toml").write_text('[log]\nlevel = "error"\n')
    assert load(tmp_path).log.level == "error"


def _seconds(work: Callable[[], object]) -> float:
    """Return the CPU time that `work` takes: the best of some runs, without the coverage's tracer."""
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        times = []
        for _ in range(5):
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
    finally:
        sys.settrace(tracer)
    return min(times)


def test_ten_thousand_vhosts_and_a_hundred_thousand_names(tmp_path: Path) -> None:
    parts = ['[listen.http]\naddress = "0.0.0.0:80"\n']
    for number in range(10_000):
        names = ", ".join([f'"n{each}.t{number}.example"' for each in range(9)])
        parts.append(
            f'[vhost.t{number}]\nhosts = ["*.t{number}.example", {names}]\nuid = {20001 + number}\n'
            'kind = "static"\nroot = "/srv"\n'
        )
    (tmp_path / "pyttpd.toml").write_text("".join(parts))
    config = load(tmp_path)
    hosts = config.host_map()
    data = hosts.to_json()
    assert HostMap.from_json(data) == hosts
    assert _seconds(lambda: HostMap.from_json(data)) < 0.1
    assert len(UmasterShare.from_json(config.share_for_umaster().to_json()).vhosts) == 10_000
    assert config.share_for_vhost("t9999").foreign == ()


def test_a_lookup_costs_the_same_for_ten_names_and_for_many() -> None:
    def cost(names: int) -> float:
        hosts = HostMap(
            1,
            {f"n{number}.example": "a" for number in range(names)},
            {f"w{number}.example": "a" for number in range(names)},
            None,
        )

        def look_up() -> None:
            for _ in range(2000):
                hosts.find("n3.example")
                hosts.find("x.w3.example")
                hosts.find("nobody.example")

        return _seconds(look_up)

    assert cost(50_000) < 3 * cost(10)


def test_the_share_s_module_is_lean() -> None:
    code = (
        "import sys, pyttpd.config.shares as s; "
        "print([m for m in ('tomllib', 'difflib', 'glob', 'hashlib', 'ipaddress', 'asyncio', 'logging', 'argparse',"
        " 'pyttpd.config.schema', 'pyttpd.config.loader') if m in sys.modules])"
    )
    # Coverage would import some of them itself.
    unmeasured = {"PYTTPD_UNMEASURED": "1"}
    command = [sys.executable, "-I", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=unmeasured)
    assert result.stdout == "[]\n"


def test_the_document_s_command() -> None:
    result = subprocess.run(
        [sys.executable, "-I", "-m", "pyttpd.config.document"], capture_output=True, text=True, check=True
    )
    assert result.stdout == document()


def test_the_first_listener_s_port_and_uid_are_the_role_table_s(folder: Path) -> None:
    config = load(ROOT / "examples" / "pyttpd.toml")
    assert config.listeners[0].uid == ROLES[Role.LISTENER].uid
    assert config.listeners[0].metrics_port == config.metrics.port_of(Role.LISTENER)
    assert json.loads(config.share_for_listener("http").to_json())["generation"] == 1
