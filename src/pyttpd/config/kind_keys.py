"""The configuration keys of each kind: one table of rows for each. schema.py puts them into mounts and vhosts.

To add a kind: its rows here, its options in kinds.py, its case in pyttpd_vhost.site (`Site.load`).
"""

from __future__ import annotations

from pyttpd.config import limits
from pyttpd.config.keys import REQUIRED, Key, Kind, Table, count
from pyttpd.config.kinds import StaticOptions

_STATIC = StaticOptions("/")

APPLICATION = Key(
    "application",
    Kind.APPLICATION,
    REQUIRED,
    "wsgi: the application object and the module that it is in.",
    example='"app:application"',
)

#: Keys that stand in the vhost's own table if it has one kind and no mounts.
SHORTHAND = (APPLICATION,)

#: Keys that a mount may have, and a vhost without mounts has not, or has for itself.
MOUNT_ONLY = ("root",)

#: Each kind's own keys: in the table of its mount; in [vhost.NAME.KIND] where the vhost has no mounts (those in
#: SHORTHAND: in the vhost's table). In step with: kinds.py.
KIND_TABLES: dict[str, Table] = {
    "static": Table(
        "static",
        'For kind "static": how the files below `root` are served.',
        (
            Key(
                "root",
                Kind.PATH,
                None,
                "The folder that is served: /app/a.css of a mount at /app is its a.css.",
                default_text="the vhost's `root`",
                example='"public"',
            ),
            Key(
                "index",
                Kind.NAMES,
                _STATIC.index,
                "What a folder is answered with: the first of these that is in it.",
                default_text='`["index.html"]`',
                example='["index.html", "index.htm"]',
            ),
            Key(
                "listing",
                Kind.FLAG,
                _STATIC.listing,
                "Whether a folder without one is answered with a list of its files; else with 403.",
            ),
            Key(
                "precompressed",
                Kind.CHOICES,
                _STATIC.precompressed,
                "Packed files that are sent in place of the file beside them (`a.css.br`, `.zst`, `.gz` "
                "for `a.css`) to clients that accept them; of equals the first in this list. One that is "
                "older than its original by more than 2 seconds is not used.",
                choices=limits.CODINGS,
                default_text='`["br", "zstd", "gzip"]`',
                example='["gzip"]',
            ),
            Key(
                "cache_control",
                Kind.CACHE_CONTROL,
                {},
                "The header Cache-Control of files: the first pattern that fits decides. One without `/` "
                "is compared with the name, one with it with the path below `root`; `*` stands for "
                "anything but `/`, `**` for anything, `?` for one character, `{a,b}` for a or b.",
                default_text="none",
                example='{ "assets/**" = "max-age=31536000, immutable", "*.html" = "no-cache" }',
            ),
            Key(
                "types",
                Kind.TYPES,
                {},
                "Content types by suffix, on top of those that are known.",
                default_text="none",
                example='{ ".gpx" = "application/gpx+xml" }',
            ),
            Key(
                "charset",
                Kind.CHARSET,
                _STATIC.charset,
                'The character set that is named for texts; "": none.',
                example='"utf-8"',
            ),
            Key(
                "symlinks",
                Kind.FLAG,
                _STATIC.symlinks,
                "Whether symbolic links below `root` are followed. One that leads out of it never is.",
            ),
            count(
                "cache",
                _STATIC.cache,
                "Paths whose open files and heads each worker keeps, and checks before it uses them; 0: "
                "none.",
                limits.STATIC_CACHE,
                "paths",
            ),
        ),
    ),
    "wsgi": Table("wsgi", 'For kind "wsgi": a Python application (PEP 3333).', (APPLICATION,)),
}
