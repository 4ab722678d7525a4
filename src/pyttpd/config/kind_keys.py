"""The configuration keys of each kind: one table of rows for each. schema.py puts them into mounts and vhosts.

To add a kind: its rows here, its options in kinds.py, its case in pyttpd_vhost.site (`Site.load`).
"""

from __future__ import annotations

from pyttpd.config import limits
from pyttpd.config.keys import REQUIRED, Key, Kind, Table, count, seconds
from pyttpd.config.kinds import (
    AsgiOptions,
    CgiOptions,
    FastcgiOptions,
    HandoffOptions,
    ScgiOptions,
    StaticOptions,
)
from pyttpd.config.processes import ProcessOptions

_STATIC = StaticOptions("/")
_ASGI = AsgiOptions("app:app")
_CGI = CgiOptions("/")
_HANDOFF = HandoffOptions(socket="/")
_PROCESSES = ProcessOptions()
_FASTCGI = FastcgiOptions(root="/", socket="/")
_SCGI = ScgiOptions(socket="/")

APPLICATION = Key(
    "application",
    Kind.APPLICATION,
    REQUIRED,
    "wsgi, asgi: the application object and the module that it is in.",
    example='"app:application"',
)

#: Keys that stand in the vhost's own table if it has one kind and no mounts.
SHORTHAND = (APPLICATION,)

#: Keys that a mount may have, and a vhost without mounts has not, or has for itself.
MOUNT_ONLY = ("root",)

#: For kinds whose applications are processes of their own. In step with: processes.py.
PROCESS_KEYS = (
    Key(
        "command",
        Kind.COMMAND,
        (),
        "The program that serves, and its arguments: it is started with the socket that it is to accept from as its "
        "standard input. No shell takes it apart.",
        default_text="none: somebody else runs it",
        example='["php-cgi"]',
    ),
    count(
        "processes",
        _PROCESSES.processes,
        "How many processes of it there are; with the other modes, at most.",
        limits.WORKERS,
        "processes",
    ),
    Key(
        "mode",
        Kind.CHOICE,
        _PROCESSES.mode,
        "static: always so many; dynamic: as many as the requests take, with some free; ondemand: none until a request "
        "comes.",
        choices=limits.POOL_MODES,
    ),
    count(
        "min_spare",
        _PROCESSES.min_spare,
        "dynamic: so many are kept without work, for what comes next.",
        limits.SPARE,
        "processes",
    ),
    count(
        "max_spare",
        _PROCESSES.max_spare,
        "dynamic: with more than so many without work, those idle for idle_timeout leave; 0: min_spare + 3.",
        limits.SPARE,
        "processes",
    ),
    seconds(
        "idle_timeout",
        _PROCESSES.idle_timeout,
        "How long a process that isn't needed may be without work before it leaves (dynamic, ondemand).",
        limits.AGE,
    ),
    count(
        "max_requests",
        _PROCESSES.max_requests,
        "A process is replaced after so many requests; 0: never.",
        limits.COUNT,
        "requests",
    ),
    seconds("max_age", _PROCESSES.max_age, "A process is replaced at this age; 0: never.", limits.AGE),
    count(
        "max_memory",
        _PROCESSES.max_memory,
        "A process is replaced when it and what it has forked have so much memory; 0: no limit.",
        limits.MEMORY,
        "bytes",
    ),
)

#: For kinds whose applications are asked over a socket, besides PROCESS_KEYS. In step with: asked.py.
ASKED_KEYS = (
    Key(
        "socket",
        Kind.PATH,
        None,
        "The Unix socket of an application that somebody else runs, such as PHP-FPM. The tenant's uid must be allowed "
        "to connect.",
        default_text="none: `command`'s processes have their own",
        example='"/srv/wiki-run/php.sock"',
    ),
    Key(
        "params",
        Kind.ENV,
        {},
        "Variables that the application is told with each request, on top of the request's own and in their place.",
        default_text="none",
        example='{ APP_ENV = "live" }',
    ),
    seconds(
        "connect_timeout",
        _SCGI.connect_timeout,
        "How long a connection to the application may take, while its queue is full; then the answer is 503.",
    ),
    seconds(
        "read_timeout",
        _SCGI.read_timeout,
        "How long the application may say nothing, and take nothing; then the answer is 504. `pool.request_timeout` "
        "bounds the request as a whole.",
    ),
)

#: For those that run scripts below a folder.
SCRIPT_KEYS = (
    Key(
        "root",
        Kind.PATH,
        None,
        "The folder of the scripts, and DOCUMENT_ROOT: /app/a.php of a mount at /app is its a.php.",
        default_text="the vhost's `root`",
        example='"public"',
    ),
    Key(
        "scripts",
        Kind.SUFFIXES,
        (),
        "What the names of scripts end in: the first file on a path that does is run, and what follows it is "
        "PATH_INFO.",
        default_text="none: the application is one program for all paths",
        example='[".php"]',
    ),
    Key(
        "index",
        Kind.NAMES,
        _FASTCGI.index,
        "With `scripts`: what a folder is answered with, the first of these that is in it.",
        default_text='`["index.php", "index.html"]`',
        example='["index.php"]',
    ),
    Key(
        "front_controller",
        Kind.FILE,
        "",
        "With `scripts`: the script for every path that leads to none, and to no other file.",
        default_text="none: 404",
        example='"index.php"',
    ),
    Key(
        "files",
        Kind.FLAG,
        _FASTCGI.files,
        "With `scripts`: whether other files below `root` are sent as they are, unless their names could be a "
        "script's that was put aside.",
    ),
    Key(
        "keep_connections",
        Kind.INTEGER,
        None,
        "Idle connections to the application that each worker keeps. A process that serves one request at a time, "
        "as PHP's do, is taken by one; so with `command` and `scripts` it is 0, or what is said of the default.",
        "connections",
        limits.KEPT,
        default_text='with `command` and `mode = "static"`: `processes` divided by `pool.max_workers`, rounded down, '
        "if that isn't less than `pool.max_threads`; else 0",
        example="0",
    ),
)

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
            Key(
                "fallback",
                Kind.FALLBACK,
                _STATIC.fallback,
                "Who is asked where no file is: `@name`, the mount of that path (a front controller); else a file "
                "below `root` that is sent instead (a single-page application's index.html).",
                default_text="nobody: 404",
                example='"@app"',
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
    "asgi": Table(
        "asgi",
        'For kind "asgi": an asynchronous Python application (ASGI 3; [asgi.md](asgi.md)).',
        (
            APPLICATION,
            Key(
                "lifespan",
                Kind.CHOICE,
                _ASGI.lifespan,
                "Whether the application is told of startup and shutdown, in each worker: auto: if it takes that, and "
                "without it, if it raises an exception; on: an exception is a failure; off: never. Where a startup "
                "fails, the worker does.",
                choices=limits.LIFESPANS,
            ),
            Key(
                "event_loop",
                Kind.CHOICE,
                _ASGI.event_loop,
                "The event loop; uvloop must be in the virtual environment. All asgi mounts of a vhost share one: "
                "uvloop, if any of them says so.",
                choices=limits.EVENT_LOOPS,
            ),
            count(
                "max_concurrency",
                _ASGI.max_concurrency,
                "Requests and WebSockets that a worker has in hand at a time, background tasks behind an answer "
                "included. More wait up to 10 s, then they get 503.",
                limits.MAX_CONCURRENCY,
                "requests",
            ),
            Key(
                "websockets",
                Kind.FLAG,
                _ASGI.websockets,
                "Whether there are any; without them a request for one is answered as if it asked for none.",
            ),
            count(
                "websocket_max_size",
                _ASGI.websocket_max_size,
                "The longest message of a client's, unpacked; a longer one ends the WebSocket with code 1009.",
                limits.WEBSOCKET_MAX_SIZE,
                "bytes",
            ),
            seconds(
                "websocket_ping",
                _ASGI.websocket_ping,
                "How often clients are pinged, and how long they may take to answer; then they are given up with code "
                "1011. 0: they aren't.",
                limits.WEBSOCKET_TIME,
            ),
            seconds(
                "websocket_idle",
                _ASGI.websocket_idle,
                "How long nothing may be said in either direction, pings apart; then it is closed with code 1000. 0: "
                "as long as you like.",
                limits.WEBSOCKET_TIME,
            ),
            Key(
                "websocket_compression",
                Kind.FLAG,
                _ASGI.websocket_compression,
                "Whether messages are packed (permessage-deflate) if the client wants that; takes some 70 KB for each.",
            ),
        ),
    ),
    "cgi": Table(
        "cgi",
        'For kind "cgi": programs that are run for each request ([cgi.md](cgi.md)).',
        (
            Key(
                "root",
                Kind.PATH,
                None,
                "The folder of the programs: /cgi-bin/a.pl/x of a mount at /cgi-bin runs its a.pl.",
                default_text="the vhost's `root`",
                example='"cgi-bin"',
            ),
            Key(
                "script",
                Kind.PATH,
                None,
                "One program for all paths, wherever it lies.",
                default_text="none: those below `root`",
                example='"/usr/lib/git-core/git-http-backend"',
            ),
            Key(
                "index",
                Kind.NAMES,
                _CGI.index,
                "What a folder is answered with: the first of these that is in it.",
                default_text="none: 404",
                example='["index.cgi"]',
            ),
            Key(
                "handlers",
                Kind.HANDLERS,
                {},
                "Programs that run files by their suffix. Such a file needn't be executable; any other must be.",
                default_text="none",
                example='{ ".php" = "/usr/bin/php-cgi" }',
            ),
            Key(
                "env",
                Kind.ENV,
                {},
                "Environment variables of these programs, on top of the vhost's. What CGI defines can't be changed.",
                default_text="none",
                example='{ GIT_PROJECT_ROOT = "/srv/git" }',
            ),
            Key(
                "suexec",
                Kind.FLAG,
                _CGI.suexec,
                "Whether owner, group and mode of a program and of the folders it is in are checked before it is run.",
            ),
            seconds(
                "timeout",
                _CGI.timeout,
                "A program that neither says nor takes anything for so long is ended: 504.",
            ),
            seconds(
                "max_time",
                _CGI.max_time,
                "And one that takes longer in all, its client's slowness included; 0: no limit.",
                limits.PROGRAM_TIME,
            ),
            count(
                "max_cpu",
                _CGI.max_cpu,
                "Processor time that each of its processes may use; 0: no limit.",
                limits.PROGRAM_CPU,
                "s",
            ),
            count(
                "max_memory",
                _CGI.max_memory,
                "Address space that each of its processes may have; 0: no limit.",
                limits.MEMORY,
                "bytes",
            ),
            count(
                "max_processes",
                _CGI.max_processes,
                "With how many processes and threads of the tenant's, all together, it may still make another one; 0: "
                "the tenant's own limit.",
                limits.PROCESSES,
                "processes",
            ),
            count(
                "max_output",
                _CGI.max_output,
                "What a program may answer, head and body; 0: no limit. It goes to the client as it comes.",
                limits.PROGRAM_OUTPUT,
                "bytes",
            ),
        ),
    ),
    "handoff": Table(
        "handoff",
        'For kind "handoff": a program takes over the connection ([handoff.md](handoff.md)).',
        (
            *PROCESS_KEYS,
            Key(
                "socket",
                Kind.PATH,
                None,
                "The Unix socket (SOCK_SEQPACKET) on which a program listens that somebody else runs.",
                default_text="none: `command`'s processes have their own",
                example='"/srv/chat-run/socket"',
            ),
            seconds(
                "accept_timeout",
                _HANDOFF.accept_timeout,
                "How long a connection may wait for the program to take it; then 503 or 504.",
            ),
            count(
                "max_channels",
                _HANDOFF.max_channels,
                "Connections that each worker may make to the program's socket.",
                limits.CHANNELS,
                "connections",
            ),
        ),
    ),
    "fastcgi": Table(
        "fastcgi",
        'For kind "fastcgi": PHP, or another FastCGI application ([fastcgi.md](fastcgi.md)).',
        (*PROCESS_KEYS, *ASKED_KEYS, *SCRIPT_KEYS),
    ),
    "scgi": Table(
        "scgi",
        'For kind "scgi": an SCGI application ([scgi.md](scgi.md)).',
        (*PROCESS_KEYS, *ASKED_KEYS),
    ),
}
