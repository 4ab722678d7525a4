"""Golden tests: a broken configuration and exactly what the operator is told about it."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest

from pyttpd.config import limits
from pyttpd.config.errors import ConfigError, ConfigErrors, printable
from pyttpd.config.kinds import KINDS
from pyttpd.config.loader import _CALLED_ELSEWHERE, load
from pyttpd.config.schema import SCHEMA

if TYPE_CHECKING:
    from pathlib import Path

LISTEN = '[listen.http]\naddress = "0.0.0.0:80"\n'
BLOG = '[vhost.blog]\nhosts = ["blog.example"]\nuid = 20001\nkind = "static"\nroot = "/srv/blog"\n'
SHOP = '[vhost.shop]\nhosts = ["shop.example"]\nuid = 20002\nkind = "static"\nroot = "/srv/shop"\n'

_NAMES = [f'"{kind}"' for kind in KINDS]
#: How kinds are listed.
ANY_KIND = f"{', '.join(_NAMES[:-1])} or {_NAMES[-1]}"
RUNNING_KINDS = " or ".join([f'"{kind}"' for kind, entry in KINDS.items() if entry.runs])
PYTHON_KINDS = " or ".join([f'"{kind}"' for kind, entry in KINDS.items() if entry.python])

NO_SETS = (
    "can't be had: no process of a tenant has the privilege to run a program under another uid, in containers or "
    "without; give such programs a vhost of their own, with a uid and a root of its own"
)

#: name: (text, what is said, without the file's name). A text starts with line 1.
CASES: dict[str, tuple[str, list[str]]] = {
    "static_tables": (
        LISTEN
        + BLOG
        + 'error_pages = { 200 = "ok.html", 404 = "../404.html", 5xx = 5 }\n'
        + "[vhost.blog.static]\n"
        + 'index = ["index.html", "a/b", ".hidden", 3]\n'
        + "listing = 1\n"
        + 'precompressed = ["gzip", "gz", "gzip"]\n'
        + 'charset = "utf 8"\n'
        + "cache = -1\n"
        + "[vhost.blog.static.cache_control]\n"
        + '"*.html" = "no-cache\\r\\nX: y"\n'
        + "[vhost.blog.static.types]\n"
        + 'md = "Text/Markdown"\n'
        + '".md" = "text/markdown"\n'
        + 'MD = "text/markdown"\n'
        + '"a b" = "text/plain"\n',
        [
            ':8: [vhost.blog] error_pages: "200" must be a status from 400 to 599, or "4xx" or "5xx"',
            (
                ":8: [vhost.blog] error_pages: the value of 404 must be a path below the root, such as "
                '"errors/404.html", not the text "../404.html"'
            ),
            (
                ':8: [vhost.blog] error_pages: the value of "5xx" must be text, such as { 404 = "404.html", 5xx = '
                '"sorry.html" }, not the number 5'
            ),
            ':10: [vhost.blog.static] index: "a/b" must be a file\'s name, without folders',
            ':10: [vhost.blog.static] index: ".hidden" is hidden: files whose names start with a dot are not served',
            ":10: [vhost.blog.static] index: must hold names of files, not the number 3",
            ":11: [vhost.blog.static] listing: must be true or false, not the number 1",
            ':12: [vhost.blog.static] precompressed: must hold "br", "zstd", "gzip" only, not the text "gz"',
            ':12: [vhost.blog.static] precompressed: "gzip" is there twice',
            (
                ':13: [vhost.blog.static] charset: must be the name of a character set, such as "utf-8", or "", not '
                'the text "utf 8"'
            ),
            ":14: [vhost.blog.static] cache: must be from 0 to 65536 paths, not -1",
            (
                ':16: [vhost.blog.static] cache_control: the value for "*.html" must be a value of Cache-Control, '
                'such as "no-cache" or "max-age=3600", not the text "no-cacheX: y"'
            ),
            (
                ':18: [vhost.blog.static] types: the value of "md" must be a media type in lower case, such as '
                '"text/markdown", not the text "Text/Markdown"'
            ),
            ':20: [vhost.blog.static] types: ".md" is there twice',
            ':21: [vhost.blog.static] types: "a b" must be the end of a file\'s name, such as ".md"',
        ],
    ),
    "static_tables_of_other_types": (
        LISTEN
        + BLOG
        + "error_pages = []\n"
        + '[vhost.blog.static]\nindex = "index.html"\nprecompressed = "gzip"\ntypes = 1\n'
        + 'cache_control = { "" = "a", "*a*a*a*a*" = "a" }\ncharset = 1\n',
        [
            (
                ':8: [vhost.blog] error_pages: must be a table, such as { 404 = "404.html", 5xx = "sorry.html" }, '
                "not a list"
            ),
            (
                ':10: [vhost.blog.static] index: must be a list of file names, such as ["index.html", "index.htm"], '
                'not the text "index.html"'
            ),
            (
                ':11: [vhost.blog.static] precompressed: must be a list of "br", "zstd", "gzip", not the text "gzip" '
                '(write ["gzip"])'
            ),
            (
                ':12: [vhost.blog.static] types: must be a table, such as { ".gpx" = "application/gpx+xml" }, not the '
                "number 1"
            ),
            ":13: [vhost.blog.static] cache_control: a pattern must be 1 to 256 printable characters",
            ':13: [vhost.blog.static] cache_control: "*a*a*a*a*" must have at most 4 times "*" or "**"',
            (
                ':14: [vhost.blog.static] charset: must be the name of a character set, such as "utf-8", or "", not '
                "the number 1"
            ),
        ],
    ),
    "static_table_of_another_kind": (
        LISTEN
        + BLOG.replace('"static"', '"wsgi"')
        + 'application = "app:app"\n[vhost.blog.static]\nlisting = true\n',
        [':9: [vhost.blog.static]: is for kind = "static": remove it, or change the kind'],
    ),
    "too_many_mounts": (
        LISTEN
        + BLOG.replace('kind = "static"\n', "")
        + "".join([f'[[vhost.blog.mount]]\npath = "/{number}"\nkind = "static"\n' for number in range(65)]),
        [
            ":7: [vhost.blog.mount]: must be at most 64 mounts, not 65",
        ],
    ),
    "mounts_of_other_types": (
        LISTEN
        + BLOG.replace('kind = "static"\n', "")
        + 'mount = [{ path = 3, kind = 4 }, { path = "", kind = "static" }, { path = "/größe\\t", kind = [] }]\n'
        + SHOP
        + "mount = 3\n",
        [
            ':7: [[vhost.blog.mount]] path: must be a path, such as "/app", not the number 3',
            f":7: [[vhost.blog.mount]] kind: must be {ANY_KIND}, not the number 4",
            ':7: [[vhost.blog.mount]] path: must start with "/", not the text "" (write "/")',
            (
                ':7: [[vhost.blog.mount]] path: must not have blanks, "?", "#" or a backslash in it, such as "/app", '
                'not the text "/größe"'
            ),
            f":7: [[vhost.blog.mount]] kind: must be {ANY_KIND}, not a list",
            ":13: [vhost.shop.mount]: must be written as [[vhost.shop.mount]], once for each",
        ],
    ),
    "syntax": (
        "[listen.http\naddress = 1\n",
        [':1: must be TOML: the name of a table isn\'t closed: "]" is missing'],
    ),
    "syntax_at_the_end": ('[a]\nb = "x', [":2: must be TOML: a text isn't closed: a quote is missing"]),
    "key_twice": (
        "grace = 1\ngrace = 2\n" + LISTEN,
        [":2: must be TOML: this key, or table, is there already"],
    ),
    "number_without_end": (
        "grace = " + "9" * 5000 + "\n",
        [": must be TOML, with numbers and dates that exist"],
    ),
    "too_deep": (
        "a = " + "[" * 5000 + "]" * 5000 + "\n",
        [": must be TOML, with lists and tables not so deep in each other"],
    ),
    "empty": ("", [': there is no listener: add a table [listen.http] with address = "0.0.0.0:80"']),
    "unknown_key_at_the_top": ("grce = 3.0\n" + LISTEN, [':1: grce: unknown key; did you mean "grace"?']),
    "unknown_table": (
        LISTEN + "[vhosts.blog]\nuid = 1\n",
        [':3: vhosts: unknown table; did you mean "vhost"?'],
    ),
    "unknown_and_nothing_near": (
        LISTEN + "[log]\nqqqqqq = 1\n",
        [":4: [log] qqqqqq: unknown key; known here: level, format"],
    ),
    "more_mounts_with_processes_than_there_are_sockets": (
        LISTEN
        + '[vhost.blog]\nhosts = ["blog.example"]\nuid = 20001\nroot = "."\n'
        + "".join(
            f'[[vhost.blog.mount]]\npath = "/{number}"\nkind = "scgi"\ncommand = ["/bin/true"]\n'
            for number in range(17)
        ),
        [":74: [[vhost.blog.mount]] command: at most 16 mounts of a vhost may have processes of their own"],
    ),
    "unknown_key": (
        LISTEN + BLOG.replace("hosts", "host"),
        [
            ':3: [vhost.blog]: hosts is missing: write, for example, hosts = ["blog.example"] (or default = true)',
            ':4: [vhost.blog] host: unknown key; did you mean "hosts"?',
        ],
    ),
    "key_in_the_wrong_table": (
        LISTEN + BLOG + "max_workers = 3\n",
        [":8: [vhost.blog] max_workers: is not known here: it belongs in [vhost.blog.pool]"],
    ),
    "key_of_several_kinds_beside_one": (
        LISTEN + BLOG.replace('"static"', '"fastcgi"') + 'command = ["/bin/true"]\n',
        [
            (
                ":3: [vhost.blog.fastcgi] command: is missing: the program that serves (or socket, if somebody else "
                "runs it)"
            ),
            ":8: [vhost.blog] command: is not known here: it belongs in [vhost.blog.fastcgi]",
        ],
    ),
    "table_of_a_kind_without_one": (
        LISTEN + BLOG.replace('"static"', '"wsgi"') + '[vhost.blog.wsgi]\napplication = "app:app"\n',
        [
            ':3: [vhost.blog]: application is missing: write, for example, application = "app:application"',
            ":8: [vhost.blog] wsgi: there is no such table: application of kind wsgi stands in [vhost.blog] itself",
        ],
    ),
    "key_misspelt_and_in_the_wrong_table": (
        LISTEN + BLOG + "body_limt = 3\n",
        [':8: [vhost.blog] body_limt: unknown key; did you mean "body_limit" in [vhost.blog.http]?'],
    ),
    "top_key_below_a_table": (
        LISTEN + "grace = 3.0\n",
        [
            ":3: [listen.http] grace: is not known here: it belongs at the top of the main file, before all tables",
        ],
    ),
    "missing": (
        "[listen.http]\nbacklog = 5\n",
        [':1: [listen.http]: address is missing: write, for example, address = "0.0.0.0:80"'],
    ),
    "missing_of_a_vhost": (
        LISTEN + "[vhost.blog]\n",
        [
            ":3: [vhost.blog]: uid is missing: write, for example, uid = 20001",
            ':3: [vhost.blog]: root is missing: write, for example, root = "/srv/blog"',
            ':3: [vhost.blog]: hosts is missing: write, for example, hosts = ["blog.example"] (or default = true)',
            (
                ':3: [vhost.blog]: kind is missing: write, for example, kind = "static" (or mounts: '
                "[[vhost.blog.mount]])"
            ),
        ],
    ),
    "table_without_a_name": (
        '[listen]\naddress = "0.0.0.0:80"\n',
        [":2: [listen] address: is in no table: write it below [listen.NAME], with a name of your choice"],
    ),
    "list_of_tables": (
        '[[listen]]\naddress = "0.0.0.0:80"\n',
        [":1: [listen]: must be written as [listen.NAME], once for each"],
    ),
    "a_pool_that_contradicts_itself": (
        LISTEN
        + BLOG
        + "[vhost.blog.pool]\n"
        + 'mode = "dynamic"\nmax_workers = 4\nstart_workers = 5\nmin_spare = 3\nmax_spare = 2\nmax_age = 60.0\n'
        + "hard_age = 30.0\nmax_memory = 512\n",
        [
            ":11: [vhost.blog.pool] start_workers: must be at most max_workers, which is 4, and not 5",
            ":13: [vhost.blog.pool] max_spare: must be at least min_spare, which is 3",
            ":15: [vhost.blog.pool] hard_age: must be at least max_age, which is 60",
            ":16: [vhost.blog.pool] max_memory: must be 0 or at least 1048576: it counts bytes",
        ],
    ),
    "a_static_pool_that_starts_fewer": (
        LISTEN + BLOG + "[vhost.blog.pool]\nmax_workers = 4\nstart_workers = 2\n",
        [
            (
                ':10: [vhost.blog.pool] start_workers: mode = "static" starts max_workers: remove it, or write mode = '
                '"dynamic"'
            ),
        ],
    ),
    "value_for_a_table": (
        LISTEN + BLOG + "pool = 3\n",
        [":8: [vhost.blog.pool]: must be a table, not the number 3"],
    ),
    "top_value_for_a_table": ("log = 3\n" + LISTEN, [":1: [log]: must be a table, not the number 3"]),
    "names": (
        LISTEN + BLOG.replace("vhost.blog", "vhost.Blog_2"),
        [
            (
                ":3: [vhost.Blog_2]: the name must be a lower-case letter, then at most 31 "
                'lower-case letters, digits or "-"'
            ),
        ],
    ),
    "taken_name": (
        LISTEN + '[listen.metrics]\naddress = "0.0.0.0:81"\n',
        [":3: [listen.metrics]: this name is taken by the tenants' metrics listener: choose another"],
    ),
    "types": (
        "grace = true\nruntime_dir = 3\n" + LISTEN + 'backlog = "many"\n[metrics]\naddress = "localhost"\n',
        [
            ":1: grace: must be a number of seconds from 0 to 3600, such as 30.0, not true",
            ':2: runtime_dir: must be a path, such as "/run/pyttpd", not the number 3',
            ':5: [listen.http] backlog: must be a whole number from 1 to 65535, such as 1024, not the text "many"',
            ':7: [metrics] address: must be an IP address, such as "127.0.0.1", not the text "localhost"',
        ],
    ),
    "bounds": (
        LISTEN
        + "head_limit = 65537\nhead_timeout = 0\nlinger_timeout = nan\nbacklog = 1.5\nstress_factor = 0\n",
        [
            ":3: [listen.http] head_limit: must be from 1024 to 65536 bytes, not 65537",
            ":4: [listen.http] head_timeout: must be from 0.1 to 3600 seconds, not 0",
            (
                ":5: [listen.http] linger_timeout: must be a number of seconds from 0 to 60, "
                "such as 2.0, not the number nan"
            ),
            ":6: [listen.http] backlog: must be a whole number from 1 to 65535, such as 1024, not the number 1.5",
            ":7: [listen.http] stress_factor: must be from 0.01 to 1, not 0",
        ],
    ),
    "far_out_of_bounds": (
        LISTEN + "backlog = " + "9" * 100 + "\n",
        [":3: [listen.http] backlog: must be from 1 to 65535 connections, not a number far too large"],
    ),
    "choice": (
        LISTEN + '[log]\nlevel = "verbose"\nformat = 1979-05-27\n',
        [
            ':4: [log] level: must be "debug", "info", "warning" or "error", not the text "verbose"',
            ':5: [log] format: must be "text" or "json", not a date or time',
        ],
    ),
    "flag": (
        LISTEN + BLOG + '[vhost.blog.http]\nkeepalive = "off"\n',
        [
            ':9: [vhost.blog.http] keepalive: must be true or false, not the text "off" (write false, without quotes)',
        ],
    ),
    "addresses": (
        "".join(
            f"[listen.l{number}]\naddress = {text}\n"
            for number, text in enumerate(['"80"', '"localhost:80"', '"::1:80"', '"0.0.0.0:99999"', "80"])
        ),
        [
            f":{2 * number + 2}: [listen.l{number}] address: must be an IP address and a port, such as "
            f'"0.0.0.0:80" or "[::]:80"{rest}'
            for number, rest in enumerate(
                [
                    ', not the text "80" (write "0.0.0.0:80")',
                    ', not the text "localhost:80" (write "127.0.0.1:80")',
                    ', not the text "::1:80" (write "[::1]:80")',
                    '; the port must be from 1 to 65535, not the text "99999"',
                    ", not the number 80",
                ]
            )
        ],
    ),
    "address_clash": (
        LISTEN + '[listen.other]\naddress = "127.0.0.1:80"\n[listen.six]\naddress = "[::]:80"\n',
        [
            (
                ":4: [listen.other] address: the address 127.0.0.1:80 clashes with the address of pyttpd.toml:2 "
                "(0.0.0.0:80): choose another port"
            ),
        ],
    ),
    "metrics_clash": (
        '[listen.http]\naddress = "0.0.0.0:9100"\n[listen.b]\naddress = "[::]:9100"\nmetrics_port = 9110\n',
        [
            (
                ":2: [listen.http] address: the address 0.0.0.0:9100 clashes with the metrics port of init "
                "(127.0.0.1:9100): choose another port"
            ),
            (
                ":5: [listen.b] metrics_port: the metrics port 127.0.0.1:9110 clashes with the metrics port of tenants "
                "(127.0.0.1:9110): choose another port"
            ),
        ],
    ),
    "listener_uids": (
        LISTEN
        + 'uid = 10011\n[listen.b]\naddress = "0.0.0.0:81"\n[listen.c]\naddress = "0.0.0.0:82"\nuid = 10009\n',
        [
            (
                ":4: [listen.b] uid: 10011 is the uid of [listen.http] as well (pyttpd.toml:3): "
                "each listener needs its own"
            ),
            ":8: [listen.c] uid: must be from 10010 to 20000, not 10009",
        ],
    ),
    "too_many_listeners": (
        "".join(f'[listen.l{number}]\naddress = "0.0.0.0:{80 + number}"\n' for number in range(7)),
        [
            ":13: [listen.l6]: is one too many: at most 6 listeners",
            (
                ":13: [listen.l6]: the metrics port 127.0.0.1:9109 clashes with the metrics port of metrics listener "
                "(127.0.0.1:9109): choose another port"
            ),
        ],
    ),
    "uid_too_low": (
        LISTEN + BLOG.replace("20001", "0"),
        [":5: [vhost.blog] uid: must be from 20001 to 2147483646, not 0"],
    ),
    "uid_clash": (
        LISTEN + BLOG + "share_uid = true\n" + SHOP.replace("20002", "20001"),
        [
            (
                ":11: [vhost.shop] uid: 20001 is the uid of [vhost.blog] as well (pyttpd.toml:5): give each its "
                "own, or write share_uid = true in all of them, if they may read each other's files and memory"
            ),
        ],
    ),
    "gid_clash": (
        LISTEN + BLOG + SHOP + "gid = 20001\n",
        [
            (
                ":13: [vhost.shop] gid: 20001 is the gid of [vhost.blog] as well (pyttpd.toml:3), which has another "
                "uid: leave gid out (it is then the uid)"
            ),
        ],
    ),
    "operators_are_a_tenants_group": (
        "admin_gid = 20001\n" + LISTEN + BLOG,
        [":1: admin_gid: 20001 is the group of [vhost.blog], whose code could reload then"],
    ),
    "operators_are_a_roles_group": (
        "admin_gid = 10010\n" + LISTEN + BLOG,
        [":1: admin_gid: 10010 is among the groups of pyttpd's own parts: write a group of people's"],
    ),
    "two_defaults": (
        LISTEN + BLOG + "default = true\n" + SHOP + "default = true\n",
        [
            (
                ":14: [vhost.shop] default: there can be one default vhost only: it is "
                "[vhost.blog] already (pyttpd.toml:8)"
            ),
        ],
    ),
    "host_of_two": (
        LISTEN + BLOG + SHOP.replace('["shop.example"]', '[\n  "shop.example",\n  "BLOG.example",\n]'),
        [':11: [vhost.shop] hosts: "blog.example" belongs to [vhost.blog] already (pyttpd.toml:4)'],
    ),
    "hosts": (
        LISTEN
        + BLOG.replace(
            '"blog.example"',
            (
                '"b\u00fccher.example", "a.example:80", "https://a.example", "*", "a*.example", "A.example",'
                ' "a.example", 3, "a.example.", "1.2.3", "::1", "[0::1]", "a b", "[::1", ""'
            ),
        ),
        [
            ':4: [vhost.blog] hosts: "b\u00fccher.example" must be written as punycode: "xn--bcher-kva.example"',
            ':4: [vhost.blog] hosts: "a.example:80" must be written without the port',
            ':4: [vhost.blog] hosts: "https://a.example" must be a host name, without scheme and path',
            ':4: [vhost.blog] hosts: "*" is no host name (write default = true for all hosts that nobody owns)',
            ':4: [vhost.blog] hosts: "a*.example": a wildcard must be "*." and a name, such as "*.blog.example"',
            ':4: [vhost.blog] hosts: "a.example" is there twice',
            ":4: [vhost.blog] hosts: must hold host names only, not the number 3",
            ':4: [vhost.blog] hosts: "a.example." must be written without the final dot: "a.example"',
            ':4: [vhost.blog] hosts: "1.2.3" is no host name: one that ends in a number must be an IPv4 address',
            ':4: [vhost.blog] hosts: "::1" must be written "[::1]"',
            ':4: [vhost.blog] hosts: "[0::1]" must be written "[::1]"',
            ':4: [vhost.blog] hosts: "a b" is no host name: "a b" must be 1 to 63 letters, digits, "-" or "_"',
            ':4: [vhost.blog] hosts: "[::1" must be an IPv6 address in brackets, such as "[2001:db8::1]"',
            (
                ":4: [vhost.blog] hosts: a host name must not be empty (write default = true for "
                "all hosts that nobody owns)"
            ),
        ],
    ),
    "more_hosts": (
        LISTEN
        + BLOG.replace(
            '"blog.example"', f'"fa\u00df.example", "[::1]:80", "*.1", "{"a." * 130}a", "\u00a9{"x" * 70}"'
        ),
        [
            ':4: [vhost.blog] hosts: "fa\u00df.example" must be written as punycode (a name that starts with "xn--")',
            ':4: [vhost.blog] hosts: "[::1]:80" must be written without the port: "[::1]"',
            ':4: [vhost.blog] hosts: "*.1" is no host name: one that ends in a number must be an IPv4 address',
            f':4: [vhost.blog] hosts: "{("a." * 130)[:79]}\u2026" must have at most 253 characters',
            f':4: [vhost.blog] hosts: "\u00a9{"x" * 70}" must be written as punycode (a name that starts with "xn--")',
        ],
    ),
    "host_as_text": (
        LISTEN + BLOG.replace('["blog.example"]', '"blog.example"'),
        [
            (
                ":4: [vhost.blog] hosts: must be a list of host names, not the text "
                '"blog.example" (write ["blog.example"])'
            ),
        ],
    ),
    "kinds": (
        LISTEN
        + BLOG
        + 'application = "app:app"\npython_path = ["lib"]\nvirtualenv = "v"\npreload = false\n'
        + SHOP.replace("static", "wsgi"),
        [
            ':8: [vhost.blog] application: is for kind = "wsgi" or "asgi": remove it, or change the kind',
            f":9: [vhost.blog] python_path: is for kind = {PYTHON_KINDS}: remove it, or change the kind",
            f":10: [vhost.blog] virtualenv: is for kind = {PYTHON_KINDS}: remove it, or change the kind",
            f":11: [vhost.blog] preload: is for kind = {PYTHON_KINDS}: remove it, or change the kind",
            ':12: [vhost.shop]: application is missing: write, for example, application = "app:application"',
        ],
    ),
    "proxies": (
        LISTEN
        + BLOG
        + 'trusted_proxies = ["10.0.0.1/8", "*", "proxy.example", 10, "10.0.0.256"]\nproxy_headers = "x"\n',
        [
            ':8: [vhost.blog] trusted_proxies: "10.0.0.1/8" is an address within a network: write "10.0.0.0/8"',
            (
                ':8: [vhost.blog] trusted_proxies: "*" must be written as networks; everybody is '
                '["0.0.0.0/0", "::/0"]'
            ),
            (
                ':8: [vhost.blog] trusted_proxies: "proxy.example" must be an IP address or a network, such as '
                '"10.0.0.5" or "10.0.0.0/8"'
            ),
            ":8: [vhost.blog] trusted_proxies: must hold IP addresses and networks, not the number 10",
            (
                ':8: [vhost.blog] trusted_proxies: "10.0.0.256" must be an IP address or a network, such as '
                '"10.0.0.5" or "10.0.0.0/8"'
            ),
            ':9: [vhost.blog] proxy_headers: must be "x-forwarded" or "forwarded", not the text "x"',
        ],
    ),
    "proxies_number": (
        LISTEN + BLOG + f"trusted_proxies = {['10.0.0.1'] * 257}\n",
        [":8: [vhost.blog] trusted_proxies: must be at most 256 addresses and networks, not 257"],
    ),
    "proxies_type": (
        LISTEN + BLOG + 'trusted_proxies = "10.0.0.1"\n',
        [
            (
                ":8: [vhost.blog] trusted_proxies: must be a list of IP addresses and networks, not the text "
                '"10.0.0.1" (write ["10.0.0.1"])'
            ),
        ],
    ),
    "unknown_kind": (
        LISTEN + BLOG.replace('"static"', '"php"'),
        [f':6: [vhost.blog] kind: must be {ANY_KIND}, not the text "php"'],
    ),
    "application": (
        LISTEN + BLOG.replace("static", "wsgi") + 'application = "app.py"\n',
        [
            (
                ':8: [vhost.blog] application: must be "module:attribute", such as '
                '"app:application", not the text "app.py"'
            ),
        ],
    ),
    "paths": (
        LISTEN + BLOG.replace("/srv/blog", "/srv/..") + 'writable = ["a\\u0007b", 3, "", "/"]\n',
        [
            ':7: [vhost.blog] root: must be a folder of its own, not "/"',
            ':8: [vhost.blog] writable: must be a path of printable characters, not the text "ab"',
            ":8: [vhost.blog] writable: must hold paths, not the number 3",
            ":8: [vhost.blog] writable: must be a path, not empty",
            ':8: [vhost.blog] writable: must be a folder of its own, not "/"',
        ],
    ),
    "path_types": (
        "runtime_dir = '" + "a" * 5000 + "'\n" + LISTEN + BLOG + 'writable = "data"\n',
        [
            ":1: runtime_dir: must be a path of fewer than 4096 bytes",
            ':9: [vhost.blog] writable: must be a list of paths, such as ["data"], not the text "data"',
        ],
    ),
    "allow": (
        LISTEN
        + BLOG.replace("static", "wsgi")
        + 'application = "a:a"\nallow = ["db:5432", "10.5.0.2", 5432, "10.5.0.2:0", "0.0.0.0:1", "[ff02::1]:1",\n'
        '    "[::ffff:10.5.0.2]:1", "[fe80::1]:1", "10.5.0.2:1", "10.5.0.2:01"]\n',
        [
            ':9: [vhost.blog] allow: must hold IP addresses with ports, such as "10.5.0.2:5432" or "[fd00::2]:5432", '
            f"not {what}"
            for what in ('the text "db:5432"', 'the text "10.5.0.2"', "the number 5432")
        ]
        + [
            (
                ":9: [vhost.blog] allow: must hold IP addresses with ports, such as "
                '"10.5.0.2:5432" or "[fd00::2]:5432"; the port must be from 1 to 65535, not the text "0"'
            ),
            ':9: [vhost.blog] allow: "0.0.0.0:1": the address stands for every address; each must be one machine\'s',
            ':9: [vhost.blog] allow: "[ff02::1]:1": the address stands for many machines; each must be one machine\'s',
            (
                ':10: [vhost.blog] allow: "[::ffff:10.5.0.2]:1": the address must be written "10.5.0.2"; '
                "each must be one machine's"
            ),
            (
                ':10: [vhost.blog] allow: "[fe80::1]:1": the address means something only on one interface; '
                "each must be one machine's"
            ),
            ':10: [vhost.blog] allow: "10.5.0.2:01" is there twice',
        ],
    ),
    "allow_types": (
        LISTEN + BLOG + SHOP.replace("static", "wsgi") + 'application = "a:a"\nallow = "10.5.0.2:5432"\n',
        [
            (
                ":14: [vhost.shop] allow: must be a list of IP addresses with ports, not the text "
                '"10.5.0.2:5432" (write ["10.5.0.2:5432"])'
            )
        ],
    ),
    "allow_too_many": (
        LISTEN + BLOG + "allow = [" + ", ".join(f'"10.5.0.2:{port}"' for port in range(1, 18)) + "]\n",
        [":8: [vhost.blog] allow: must be at most 16 addresses, not 17"],
    ),
    "allow_for_static": (
        LISTEN + BLOG + 'allow = ["10.5.0.2:5432"]\n',
        [f":8: [vhost.blog] allow: is for kind = {RUNNING_KINDS}: remove it, or change the kind"],
    ),
    "env": (
        LISTEN + BLOG + '[vhost.blog.env]\nDEBUG = 0\n"A-B" = "x"\nC = "\\u0000"\nD = []\n',
        [
            ':8: [vhost.blog] env: the value of DEBUG must be text, not the number 0 (write "0")',
            ':8: [vhost.blog] env: a variable\'s name must be letters, digits and "_", not "A-B"',
            ":8: [vhost.blog] env: the value of C must not contain NUL",
            ":8: [vhost.blog] env: the value of D must be text, not a list",
        ],
    ),
    "env_too_large": (
        LISTEN + BLOG + f'env = {{ A = "{"x" * 70000}" }}\n',
        [":8: [vhost.blog] env: must be at most 256 variables and 65536 bytes in all"],
    ),
    "log_files": (
        LISTEN
        + BLOG
        + 'writable = ["/srv/data"]\naccess_log_file = "/srv/blog/a.log"\nerror_log_file = "/srv/data/e.log"\n'
        + SHOP
        + 'access_log = "on"\naccess_log_file = "/var/log/shop"\nerror_log_file = "/var/log/x/../shop"\n',
        [
            (
                ":9: [vhost.blog] access_log_file: must not be in the tenant's own reach (root: /srv/blog): "
                "it would be served, or read by its code"
            ),
            (
                ":10: [vhost.blog] error_log_file: must not be in the tenant's own reach (writable: /srv/data): "
                "its code could change it"
            ),
            ':16: [vhost.shop] access_log: must be "combined", "json" or "off", not the text "on"',
            (
                ":18: [vhost.shop] error_log_file: is the file of [vhost.shop] access_log_file "
                "(pyttpd.toml:17) as well: each log needs its own"
            ),
        ],
    ),
    "env_no_table": (
        LISTEN + BLOG + 'env = ["A=1"]\n',
        [':8: [vhost.blog] env: must be a table of texts, such as { DEBUG = "0" }, not a list'],
    ),
    "control_characters": (
        LISTEN + '[log]\nlevel = "\\u001b[31mred\\u202e"\n["\\u001b]0;title\\u0007"]\n',
        [
            ':4: [log] level: must be "debug", "info", "warning" or "error", not the text "[31mred"',
            (
                ": ]0;title: unknown table; known here: include, runtime_dir, admin_gid, grace, [log], [metrics], "
                "[listen], [vhost]"
            ),
        ],
    ),
    "include": (
        "include = 3\n" + LISTEN,
        [
            ':1: include: must be a file name pattern or a list of them, such as "conf.d/*.toml", not the number 3',
        ],
    ),
    "permission_sets": (
        LISTEN
        + "[permission_set.web]\nuid = 30001\n"
        + BLOG.replace("static", "cgi")
        + '[vhost.blog.cgi]\npermission_set = "web"\n',
        [f":3: permission_set: {NO_SETS}", f":11: [vhost.blog.cgi] permission_set: {NO_SETS}"],
    ),
    "include_nothing": ('include = ["b.toml"]\n' + LISTEN, [':1: include: the file "b.toml" does not exist']),
    "include_empty": ('include = [""]\n' + LISTEN, [":1: include: must be a path, not empty"]),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_said(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, expected = CASES[name]
    (tmp_path / "pyttpd.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigErrors) as caught:
        load("pyttpd.toml")
    assert str(caught.value).split("\n") == [f"pyttpd.toml{line}" for line in expected]
    assert str(caught.value).replace("\n", "").isprintable()


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 20


def _said(path: Path) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        load(path)
    return [str(error).replace(f"{path.parent}/", "") for error in caught.value.errors]


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b'grace = 1\nruntime_dir = "/\xff"\n')
    assert _said(tmp_path / "a.toml") == ["a.toml:2: must be UTF-8 text; this line is not"]


def test_not_there(tmp_path: Path) -> None:
    assert _said(tmp_path / "a.toml") == [
        "a.toml: can't be read: No such file or directory (the configuration is a .toml file)"
    ]
    assert _said(tmp_path / "a\0.toml") == ["a.toml: can't be read: this is no file name"]


def test_a_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.toml")
    assert _said(tmp_path / "a.toml") == ["a.toml: must be a regular file"]


def test_a_folder_is_no_included_file(tmp_path: Path) -> None:
    (tmp_path / "b.toml").mkdir()
    (tmp_path / "a.toml").write_text('include = "b*"\n' + LISTEN)
    assert _said(tmp_path / "a.toml") == ["b.toml: must be a regular file"]


def test_what_keys_are_called_elsewhere_is_a_key_here() -> None:
    names = {name for _, table in SCHEMA.walk() for name in [key.name for key in table.keys]}
    assert set(_CALLED_ELSEWHERE.values()) <= names
    # a pool that is given "processes" has max_workers, and a mount has both
    assert not names & set(_CALLED_ELSEWHERE) - {"address", "processes", "socket"}


@pytest.mark.parametrize(
    ("key", "text", "meant"),
    [
        ("body_limit", '"10M"', 10485760),
        ("body_limit", '"64 KiB"', 65536),
        ("body_limit", '"100"', 100),
        ("body_limit", '"100b"', 100),
        ("body_limit", "1e6", 1000000),
        ("idle_timeout", '"30s"', 30),
        ("idle_timeout", '"5 min"', 300),
        ("idle_timeout", '"1h"', 3600),
        # not clear, or not allowed
        ("body_limit", '"10 apples"', None),
        ("body_limit", '"100P"', None),
        ("body_limit", '"9999T"', None),
        ("body_limit", "1.5", None),
        ("body_limit", "inf", None),
        ("body_limit", '""', None),
        ("body_limit", '"30s"', None),
        ("idle_timeout", '"10M "', None),
        ("idle_timeout", '"0s"', None),
        ("idle_timeout", '"2h"', None),
        ("idle_timeout", '"\u0663"', None),
    ],
)
def test_numbers_with_units(key: str, text: str, meant: int | None, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(LISTEN + BLOG + f"[vhost.blog.http]\n{key} = {text}\n")
    (said,) = _said(tmp_path / "a.toml")
    found = re.search(r": write (\d+), not", said)
    assert (None if found is None else int(found[1])) == meant


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CONFIG_BYTES", 100)
    (tmp_path / "a.toml").write_text('include = "b.toml"\n' + LISTEN)
    (tmp_path / "b.toml").write_text("#" * 50)
    assert _said(tmp_path / "a.toml") == ["b.toml: all files together must be at most 100 bytes"]


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CONFIG_FILES", 3)
    (tmp_path / "a.toml").write_text('include = "conf.d/*.toml"\n' + LISTEN)
    (tmp_path / "conf.d").mkdir()
    for number in range(3):
        (tmp_path / "conf.d" / f"{number}.toml").write_text("")
    assert _said(tmp_path / "a.toml") == ["a.toml:1: include: matches 3 files; at most 2 can be included"]


def test_included_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('include = "conf.d/*"\n' + LISTEN + BLOG + "[log]\n")
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "1.toml").write_text(BLOG + "\n[log]\n")
    (tmp_path / "conf.d" / "2.toml").write_text(
        'include = "x"\ngrace = 3.0\n' + SHOP.replace("shop.ex", "blog.ex")
    )
    (tmp_path / "conf.d" / "3.toml").write_text("[log\n")
    # The third can't be read, but the others are looked at all the same, as far as they stand for themselves.
    assert _said(tmp_path / "a.toml") == [
        "conf.d/1.toml:1: [vhost.blog]: is there already (a.toml:4)",
        "conf.d/1.toml:7: [log]: is there already (a.toml:9)",
        "conf.d/2.toml:1: include: must be in the main file only",
        "conf.d/2.toml:2: grace: must be in the main file (a.toml)",
        'conf.d/2.toml:4: [vhost.shop] hosts: "blog.example" belongs to [vhost.blog] already (a.toml:5)',
        'conf.d/3.toml:1: must be TOML: the name of a table isn\'t closed: "]" is missing',
    ]


def test_an_included_file_can_hold_the_listener(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('include = "b.toml"\n')
    (tmp_path / "b.toml").write_text("[\n")
    assert len(_said(tmp_path / "a.toml")) == 1  # not also that there is no listener


def test_too_many_errors_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("".join(f"x{number} = 1\n" for number in range(1500)))
    with pytest.raises(ConfigErrors) as caught:
        load(tmp_path / "a.toml")
    assert caught.value.count == 1500
    assert len(caught.value.errors) == 1000
    assert str(caught.value).endswith("... and 500 more")


def test_lines_within_long_strings_are_no_keys(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        LISTEN
        + BLOG
        + '[vhost.blog.env]\nTEXT = """\n[log]\nlevel = 1\n"""\nLINE = """one"""\n[log]\nlevel = 2\n'
    )
    assert _said(tmp_path / "a.toml")[0].startswith("a.toml:15: [log] level: must be")


def test_quoted_and_dotted_keys_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(LISTEN + "vhost.\"blog\" . 'uid' = 3\n")
    assert any(line.startswith("a.toml:3: [listen.http] vhost") for line in _said(tmp_path / "a.toml"))
    (tmp_path / "a.toml").write_text("vhost.\"blog\" . 'uid' = 3\n" + LISTEN)
    assert "a.toml:1: [vhost.blog] uid: must be from 20001 to 2147483646, not 3" in _said(tmp_path / "a.toml")


def test_the_folder_s_name_counts(tmp_path: Path) -> None:
    folder = tmp_path / "a\nb\udcff"
    folder.mkdir()
    (folder / "a.toml").write_text(LISTEN + BLOG.replace("/srv/blog", "site"))
    with pytest.raises(ConfigErrors) as caught:
        load(folder / "a.toml")
    assert len(caught.value.errors) == 1
    assert "printable characters" in str(caught.value)
    assert str(caught.value).isprintable()


def test_names_that_no_share_can_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SHARE_NAMES_BYTES", 30)
    (tmp_path / "a.toml").write_text(
        LISTEN + BLOG.replace('"blog', '"*.blog') + SHOP.replace("shop.ex", "shop.blog.ex")
    )
    assert _said(tmp_path / "a.toml") == [
        (
            "a.toml:4: [vhost.blog] hosts: 1 names, and 1 of other vhosts below them, are 37 bytes; "
            "they must be at most 30 bytes"
        ),
    ]


def test_printable() -> None:
    assert printable("a\x1b[0m\u202eb\n") == "a[0mb"
    assert printable("x" * 81) == "x" * 79 + "\u2026"
    assert printable("\0" * 1000 + "x") == "\u2026"


def test_an_error_reads_well_without_its_parts() -> None:
    assert str(ConfigError("a", None, "", "wrong")) == "a: wrong"
    assert str(ConfigError("a", 3, "[log]", "wrong")) == "a:3: [log]: wrong"
