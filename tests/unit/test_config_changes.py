"""What a reload would change: one table of edits, each with what the plan says and who is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyttpd.config.changes import Plan, compare, lines, needs_view
from pyttpd.config.loader import load

TEXT = """
[listen.http]
address = "127.0.0.1:8080"
[vhost.blog]
hosts = ["blog.example"]
uid = 20001
kind = "static"
root = "/srv/blog"
env = { SECRET = "hunter2" }
[vhost.shop]
hosts = ["*.shop.example"]
uid = 20002
kind = "static"
root = "/srv/shop"
"""
WIKI = """
[vhost.wiki]
hosts = ["wiki.example"]
uid = 20003
kind = "static"
root = "/srv/wiki"
"""


def plan_of(folder: Path, *edits: tuple[str, str]) -> Plan:
    file = folder / "pyttpd.toml"
    file.write_text(TEXT)
    old = load(file)
    text = TEXT
    for before, after in edits:
        assert before in text
        text = text.replace(before, after)
    file.write_text(text)
    return compare(old, load(file))


MOUNTS = """
[[vhost.shop.mount]]
path = "/"
kind = "static"
[[vhost.shop.mount]]
path = "/cgi-bin"
kind = "cgi"
root = "/srv/cgi"
env = { PASSWORD = "hunter2" }
[[vhost.shop.mount]]
path = "/php"
kind = "fastcgi"
root = "/srv/php"
socket = "/run/php.sock"
params = { PASSWORD = "hunter2" }
"""


@pytest.mark.parametrize(
    ("edit", "details"),
    [
        (('kind = "static"', 'kind = "static"\nlisting = true'), ["mount /: listing: False -> True"]),
        (("hunter2", "hunter3"), ["mount /cgi-bin: env: PASSWORD", "mount /php: params: PASSWORD"]),
        (("/cgi-bin", "/run"), ["mount /cgi-bin: kind: cgi -> none", "mount /run: kind: none -> cgi"]),
        (
            ("[[vhost.shop.mount]]" + MOUNTS.split("[[vhost.shop.mount]]")[1], ""),
            ["mount /: kind: static -> none"],
        ),
    ],
    ids=["a key", "secrets", "another path", "one less"],
)
def test_mounts(tmp_path: Path, edit: tuple[str, str], details: list[str]) -> None:
    """Each mount's keys are shown as a table's are, and no secret of theirs."""
    file = tmp_path / "pyttpd.toml"
    text = TEXT[: TEXT.rindex('kind = "static"')] + 'root = "/srv/shop"\n' + MOUNTS
    file.write_text(text)
    old = load(file)
    assert edit[0] in text
    head, tail = text[: text.index(MOUNTS)], MOUNTS.replace(*edit)
    file.write_text(head + tail)
    found = lines(compare(old, load(file)), plain=True)
    assert found == ["~ [vhost.shop]: new workers", *[f"    {detail}" for detail in details]]


def test_a_mount_s_folder_takes_another_view(tmp_path: Path) -> None:
    """Without containers the supervisor that runs sees the folders of its start, and no other."""
    file = tmp_path / "pyttpd.toml"
    text = TEXT[: TEXT.rindex('kind = "static"')] + 'root = "/srv/shop"\n' + MOUNTS
    file.write_text(text)
    old = load(file)
    for edited, view in (
        (text.replace("/srv/cgi", "/srv/run"), True),
        (f'{text}[[vhost.shop.mount]]\npath = "/more"\nkind = "static"\nroot = "/srv/more"\n', True),
        (text.replace("hunter2", "hunter3"), False),
    ):
        file.write_text(edited)
        new = load(file)
        assert needs_view(old.vhost("shop"), new.vhost("shop")) is view
        assert ("all its processes are started anew" in lines(compare(old, new), plain=True)[0]) is view


def test_the_one_kind_of_a_vhost(tmp_path: Path) -> None:
    """Its keys are those of a table of its own."""
    plan = plan_of(tmp_path, ("[vhost.shop]", "[vhost.blog.static]\nlisting = true\n[vhost.shop]"))
    assert lines(plan, plain=True) == ["~ [vhost.blog]: new workers", "    static.listing: False -> True"]
    plan = plan_of(
        tmp_path,
        ('kind = "static"\nroot = "/srv/blog"', 'kind = "wsgi"\napplication = "a:b"\nroot = "/srv/blog"'),
    )
    assert "    kind: static -> wsgi" in lines(plan, plain=True)


def test_what_is_written_differently_is_no_change(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, ("[listen.http]", "# a comment\ngrace = 30\n[listen.http]"))
    assert plan == Plan()
    assert lines(plan, plain=True) == ["nothing changes"]


@pytest.mark.parametrize(
    ("edit", "vhosts", "listeners", "umaster", "plain", "containers"),
    [
        pytest.param(
            ("[vhost.shop]", f"{WIKI}[vhost.shop]"),
            ("wiki",),
            (),
            True,
            ["+ [vhost.wiki]: its processes are started"],
            ["+ [vhost.wiki]: needs a container: docker compose up -d vhost-wiki"],
            id="a vhost more",
        ),
        pytest.param(
            (TEXT[TEXT.index("[vhost.shop]") :], ""),
            ("shop",),
            (),
            True,
            ["- [vhost.shop]: its processes end"],
            ["- [vhost.shop]: its container can go: docker compose rm -sf vhost-shop"],
            id="a vhost less",
        ),
        pytest.param(
            ("20001", "20009"),
            ("blog",),
            (),
            True,
            ["~ [vhost.blog]: all its processes are started anew, and the old ones end when those serve"],
            [
                "~ [vhost.blog]: needs its container anew, with `user` and `--allow`: docker compose up -d vhost-blog"
            ],
            id="another uid",
        ),
        pytest.param(
            ('"/srv/blog"', '"/srv/new"'),
            ("blog",),
            (),
            False,
            ["~ [vhost.blog]: all its processes are started anew, and the old ones end when those serve"],
            ["~ [vhost.blog]: new workers; what it names must be in its container"],
            id="another root",
        ),
        pytest.param(
            (
                'kind = "static"\nroot = "/srv/blog"',
                'kind = "static"\nqueue = { limit = 9 }\nroot = "/srv/blog"',
            ),
            (),
            (),
            True,
            ["~ [vhost.blog]: its workers are not touched", "    queue.limit: 16384 -> 9"],
            ["~ [vhost.blog]: its workers are not touched"],
            id="a quota",
        ),
        pytest.param(
            ("hunter2", "hunter3"),
            ("blog",),
            (),
            False,
            ["~ [vhost.blog]: new workers", "    env: SECRET"],
            ["~ [vhost.blog]: new workers"],
            id="a secret",
        ),
        pytest.param(
            ('["blog.example"]', '["blog.example", "a.shop.example"]'),
            ("blog", "shop"),
            (),
            True,
            [
                "~ [vhost.blog]: new workers",
                "1 more vhosts get new workers, since what they share with others changes",
            ],
            ["~ [vhost.blog]: new workers"],
            id="a name below another's wildcard",
        ),
        pytest.param(
            ("127.0.0.1:8080", "127.0.0.1:8081"),
            (),
            ("http",),
            True,
            ["~ [listen.http]: a new port", "    address: 127.0.0.1:8080 -> 127.0.0.1:8081"],
            ["~ [listen.http]: a new port: publish it in `ports` of the service net"],
            id="another port",
        ),
        pytest.param(
            ("[vhost.blog]", '[listen.more]\naddress = "[::1]:8080"\n[vhost.blog]'),
            (),
            ("more",),
            True,
            ["+ [listen.more]: its process is started; a new port", "    address = [::1]:8080"],
            [
                (
                    "+ [listen.more]: needs a container: docker compose up -d listener-more; a new port: publish it in "
                    "`ports` of the service net"
                )
            ],
            id="a listener more",
        ),
        pytest.param(
            ("\n[listen.http]", '\ngrace = 5\n[log]\nlevel = "debug"\n[listen.http]'),
            ("blog", "shop"),
            ("http", "metrics"),
            True,
            ["~ top of the file", "    grace: 30.0 -> 5.0", "~ [log]", "    level: info -> debug"],
            ["~ top of the file"],
            id="what all share",
        ),
        pytest.param(
            ("\n[listen.http]", '\nruntime_dir = "/run/other"\n[listen.http]'),
            (),
            (),
            False,
            ["~ top of the file: takes a restart of the tree"],
            ["~ top of the file: has no effect in containers"],
            id="runtime_dir",
        ),
        pytest.param(
            ("\n[listen.http]", "\n[metrics]\nbase_port = 9300\n[listen.http]"),
            (),
            ("http", "metrics"),
            True,
            ["~ [metrics]: new ports", "    base_port: 9100 -> 9300"],
            ["~ [metrics]: new ports: publish them in `ports` of the service net"],
            id="metrics",
        ),
    ],
)
def test_what_changes(
    tmp_path: Path,
    edit: tuple[str, str],
    vhosts: tuple[str, ...],
    listeners: tuple[str, ...],
    umaster: bool,
    plain: list[str],
    containers: list[str],
) -> None:
    plan = plan_of(tmp_path, edit)
    for form, expected in ((True, plain), (False, containers)):
        text = lines(plan, plain=form)
        assert [line for line in expected if line not in text] == [], text
        assert not [line for line in text if "hunter" in line]
    assert (plan.vhosts, plan.listeners, plan.umaster) == (vhosts, listeners, umaster)
