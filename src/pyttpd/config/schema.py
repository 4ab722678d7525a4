"""The one table of configuration keys: name, kind of value, default, unit, bounds, one sentence of documentation.

It drives validation (loader.py), error messages (values.py), docs/configuration.md (document.py) and the JSON schema
for editors (json_schema.py). To add a key: add a row here, a field to the dataclass that carries it (model.py or
shares.py), and `make docs`. To add a kind of value: values.py and json_schema.py know them all.
"""

from __future__ import annotations

from dataclasses import replace

from pyttpd.config import limits
from pyttpd.config.keys import REQUIRED, Key, Kind, Table, count, seconds
from pyttpd.config.kind_keys import KIND_TABLES, MOUNT_ONLY, SHORTHAND
from pyttpd.config.shares import HttpSettings, LogSettings, PoolSettings, TenantLogs
from pyttpd.roles import (
    MAX_LISTENERS,
    METRICS_LISTENER_OFFSET,
    MIN_VHOST_UID,
    ROLES,
    TENANT_METRICS_OFFSET,
    Role,
)

_LOG = LogSettings()
_POOL = PoolSettings()
_HTTP = HttpSettings()
_LOGS = TenantLogs()
_FIRST_LISTENER_UID = ROLES[Role.LISTENER].uid
_FIRST_LISTENER_PORT = ROLES[Role.LISTENER].metrics_offset


def _in_vhost(key: Key) -> Key:
    """Return a kind's key as the vhost's own table has it: it is required of that kind only."""
    kinds = [name for name, table in KIND_TABLES.items() if key in table.keys]
    return replace(key, default=None, default_text=f"required for kind {' or '.join(kinds)}")


def _shorthand_tables() -> list[Table]:
    """Return the tables of kinds as a vhost without mounts has them: [vhost.NAME.KIND]."""
    found = []
    for name, table in KIND_TABLES.items():
        keys = tuple([key for key in table.keys if key not in SHORTHAND and key.name not in MOUNT_ONLY])
        if keys:
            found.append(replace(table, keys=keys, kind=name))
    return found


_KIND_TABLES = _shorthand_tables()

#: A mount's own keys; those of its kind stand beside them (`mount_table`).
MOUNT = Table(
    "mount",
    "What serves the paths below `path`, in a vhost with several kinds ([mounts.md](mounts.md)). The keys of its kind "
    "stand in the same table.",
    (
        Key(
            "path",
            Kind.MOUNT_PATH,
            REQUIRED,
            'A path such as "/app": the mount gets /app and everything below it, unless another mount\'s path is '
            'longer; "/" is everything. "@name" is none: what the `fallback` of a static mount names.',
            example='"/app"',
        ),
        Key("kind", Kind.CHOICE, REQUIRED, "What serves there.", choices=tuple(KIND_TABLES)),
    ),
    listed=True,
)


def mount_table(kind: str) -> Table:
    """Return the table of a mount of that kind. KeyError if there is none."""
    return replace(MOUNT, keys=MOUNT.keys + KIND_TABLES[kind].keys)


SCHEMA = Table(
    "",
    "The whole tree.",
    (
        Key(
            "include",
            Kind.PATTERNS,
            (),
            "More files to read, in sorted order, such as one for each tenant; a folder stands for its *.toml. In the "
            "main file only, relative to it.",
            default_text="none",
            example='"conf.d/*.toml"',
        ),
        Key(
            "runtime_dir",
            Kind.PATH,
            "/run/pyttpd",
            "Where the channels' directories are made when the tree runs as plain processes; as an ordinary user, "
            "unless it is set, in $XDG_RUNTIME_DIR/pyttpd, or /tmp/pyttpd-UID without that.",
            example='"/run/pyttpd"',
        ),
        Key(
            "admin_gid",
            Kind.INTEGER,
            None,
            "Members of this group may reload the configuration and applications, as root may (`pyttpd reload`).",
            "gid",
            limits.ADMIN_GID,
            default_text="nobody but root",
            example="4",
        ),
        seconds(
            "grace",
            30.0,
            "How long a part that was asked to leave may finish what it has in hand; then it is ended.",
            limits.GRACE,
        ),
    ),
    (
        Table(
            "log",
            "What every role logs, to its standard error.",
            (
                Key(
                    "level",
                    Kind.CHOICE,
                    _LOG.level,
                    "The least severe level that is logged.",
                    choices=limits.LOG_LEVELS,
                ),
                Key(
                    "format",
                    Kind.CHOICE,
                    _LOG.format,
                    "Lines for people, or one JSON object a line for collectors.",
                    choices=limits.LOG_FORMATS,
                ),
            ),
        ),
        Table(
            "metrics",
            f"Where Prometheus finds the roles. Counted from `base_port`: init, master and umaster (+0, +1, +2), "
            f"listeners (from +{_FIRST_LISTENER_PORT}), the tenants' metrics listener (+{METRICS_LISTENER_OFFSET}) and "
            f"the tenants (+{TENANT_METRICS_OFFSET}, by path: /metrics/NAME).",
            (
                Key(
                    "address",
                    Kind.IP,
                    "127.0.0.1",
                    "The address of all metrics ports; in a container 0.0.0.0, published to the host's loopback.",
                    example='"127.0.0.1"',
                ),
                count("base_port", 9100, "The first of the metrics ports.", limits.BASE_PORT, "port"),
            ),
        ),
        Table(
            "listen",
            f"A listening socket and the process that accepts from it; at least one, at most {MAX_LISTENERS}. The name "
            "is yours; `metrics` is taken.",
            (
                Key(
                    "address",
                    Kind.ADDRESS,
                    REQUIRED,
                    'The IP address and port to listen on; "[::]:80" is IPv6 only: it can stand beside "0.0.0.0:80".',
                    example='"0.0.0.0:80"',
                ),
                count(
                    "backlog",
                    1024,
                    "Connections that the kernel keeps waiting for accept; net.core.somaxconn is a bound as well.",
                    limits.BACKLOG,
                    "connections",
                ),
                Key(
                    "uid",
                    Kind.INTEGER,
                    None,
                    "The uid of the listener's process: each needs its own.",
                    "uid",
                    limits.LISTENER_UID,
                    default_text=f"{_FIRST_LISTENER_UID} + position",
                    example=str(_FIRST_LISTENER_UID),
                ),
                count(
                    "head_limit",
                    32768,
                    "The longest request head that is looked at to find the host; a longer one is answered 431.",
                    limits.HEAD_LIMIT,
                    "bytes",
                ),
                count(
                    "request_line_limit",
                    _HTTP.request_line_limit,
                    "The longest request line; a longer one is answered 414. RFC 9112 wants 8000 bytes at least.",
                    limits.REQUEST_LINE_LIMIT,
                    "bytes",
                ),
                count(
                    "max_headers",
                    _HTTP.max_headers,
                    "The most header fields of a head; more are answered 431. Browsers send about twenty, proxies add "
                    "ten.",
                    limits.MAX_HEADERS,
                    "fields",
                ),
                seconds(
                    "head_timeout", 10.0, "Within this time the head must have come, or the answer is 408."
                ),
                seconds(
                    "linger_timeout",
                    2.0,
                    "How long the listener reads on after an answer of its own, so that a reset doesn't destroy it.",
                    limits.LINGER,
                ),
                count(
                    "max_connections",
                    16384,
                    "Connections accepted but not yet taken by a worker; above that the listener stops accepting.",
                    limits.MAX_CONNECTIONS,
                    "connections",
                ),
                Key(
                    "max_unnamed_per_client",
                    Kind.INTEGER,
                    None,
                    "Connections of one client (an IPv4 address, an IPv6 /64) whose head hasn't come, or that are "
                    "being refused; for one more, its oldest is closed, so that a client can't take up all; 0: "
                    "no limit.",
                    "connections",
                    limits.PER_CLIENT,
                    default_text="three quarters of max_connections",
                    example="256",
                ),
                Key(
                    "stress_factor",
                    Kind.NUMBER,
                    _HTTP.stress_factor,
                    "From three quarters of max_connections on, and until it is half, head_timeout and linger_timeout "
                    "are multiplied by this, so that who says nothing makes room; 1: never.",
                    bounds=limits.STRESS_FACTOR,
                    example=str(_HTTP.stress_factor),
                ),
                Key(
                    "proxy_protocol",
                    Kind.NETWORKS,
                    (),
                    "Load balancers that begin each connection with a PROXY header (version 1 or 2), and are believed "
                    "what it says of the client's address. If there are any, connections of everybody else, and those "
                    "without a header, are closed ([operating.md](operating.md#behind-a-load-balancer)).",
                    default_text="none",
                    example='["10.0.0.5", "2001:db8::/32"]',
                ),
                seconds(
                    "handover_timeout",
                    15.0,
                    "How long a connection waits for an absent umaster before it is answered 503.",
                ),
                Key(
                    "metrics_port",
                    Kind.INTEGER,
                    None,
                    "The port of this listener's own metrics.",
                    "port",
                    limits.PORT,
                    default_text=f"base_port + {_FIRST_LISTENER_PORT} + position",
                    example=str(9100 + (_FIRST_LISTENER_PORT or 0)),
                ),
            ),
            named=True,
        ),
        Table(
            "vhost",
            "A tenant: its names, its identity, what it serves.",
            (
                Key(
                    "hosts",
                    Kind.HOSTS,
                    (),
                    'Names that this tenant answers for; "*.blog.example" is every name below blog.example, at any '
                    "depth, but not blog.example itself; an exact name wins over a wildcard, a longer wildcard over a "
                    "shorter one.",
                    default_text="required, unless `default` is true",
                    example='["blog.example", "*.blog.example"]',
                ),
                Key(
                    "default",
                    Kind.FLAG,
                    False,
                    "Whether it gets all hosts that nobody owns; at most one vhost.",
                ),
                Key(
                    "uid",
                    Kind.INTEGER,
                    REQUIRED,
                    "The uid of all of the tenant's processes.",
                    "uid",
                    limits.VHOST_UID,
                    example=str(MIN_VHOST_UID),
                ),
                Key(
                    "gid",
                    Kind.INTEGER,
                    None,
                    "The only group of the tenant's processes.",
                    "gid",
                    limits.VHOST_UID,
                    default_text="the uid",
                    example=str(MIN_VHOST_UID),
                ),
                Key(
                    "share_uid",
                    Kind.FLAG,
                    False,
                    "Allows other vhosts with the same uid: nothing protects them from each other; all must say so.",
                ),
                Key(
                    "kind",
                    Kind.CHOICE,
                    None,
                    "What serves everything, if there is one kind only; with several, each has a mount. See "
                    "[mounts.md](mounts.md).",
                    choices=tuple(KIND_TABLES),
                    default_text="required, unless there are mounts",
                ),
                Key(
                    "root",
                    Kind.PATH,
                    REQUIRED,
                    "The tenant's folder: the working directory of its processes, and first in the module search path; "
                    "static serves what lies in it.",
                    example='"/srv/blog"',
                ),
                *[_in_vhost(key) for key in SHORTHAND],
                Key(
                    "python_path",
                    Kind.PATHS,
                    (),
                    "More folders to search for modules.",
                    default_text="none",
                    example='["lib"]',
                ),
                Key(
                    "virtualenv",
                    Kind.PATH,
                    None,
                    "A virtual environment, made for the Python that pyttpd runs on, whose packages the application "
                    "finds; its .pth files count.",
                    default_text="none",
                    example='"/srv/blog/.venv"',
                ),
                Key(
                    "preload",
                    Kind.FLAG,
                    True,
                    "Whether the application is imported once and its workers share the memory; false for one that "
                    "opens sockets, database connections or threads at import: each worker imports it for itself.",
                ),
                Key(
                    "env",
                    Kind.ENV,
                    {},
                    "Environment variables that the application finds.",
                    default_text="none",
                    example='{ DEBUG = "0" }',
                ),
                Key(
                    "writable",
                    Kind.PATHS,
                    (),
                    "Folders below which the tenant may write; everything else is read-only for it.",
                    default_text="none",
                    example='["data"]',
                ),
                Key(
                    "access_log",
                    Kind.CHOICE,
                    _LOGS.access_log,
                    "One line for each request, on the tenant's standard output: as Apache and nginx write it, or as a "
                    "JSON object.",
                    choices=limits.ACCESS_LOGS,
                ),
                Key(
                    "access_log_file",
                    Kind.PATH,
                    _LOGS.access_log_file,
                    "A file for the access log instead; it is opened under the tenant's uid, and opened anew when it "
                    "has been renamed.",
                    default_text="none",
                    example='"/var/log/pyttpd/blog/access.log"',
                ),
                Key(
                    "error_log_file",
                    Kind.PATH,
                    _LOGS.error_log_file,
                    "A file for what the tenant's processes print, tracebacks among it, instead of the role's log.",
                    default_text="none",
                    example='"/var/log/pyttpd/blog/error.log"',
                ),
                Key(
                    "slow_log_file",
                    Kind.PATH,
                    _LOGS.slow_log_file,
                    "A file for what is said of requests that take too long (pool.slow_request, pool.request_timeout), "
                    "with its tracebacks; else that goes where the tenant prints.",
                    default_text="none",
                    example='"/var/log/pyttpd/blog/slow.log"',
                ),
                count(
                    "log_file_limit",
                    _LOGS.log_file_limit,
                    "What each of these files may grow to; what comes then is counted, told, and lost until the "
                    "file is renamed.",
                    limits.LOG_FILE_LIMIT,
                    "bytes",
                ),
                Key(
                    "log_level",
                    Kind.CHOICE,
                    None,
                    "The least severe level that is logged of this tenant.",
                    choices=limits.LOG_LEVELS,
                    default_text="`level` of `[log]`",
                ),
                Key(
                    "trusted_proxies",
                    Kind.NETWORKS,
                    (),
                    "Proxies whose word about the client's address, scheme, host and port is believed; from everybody "
                    "else such headers don't reach the application ([wsgi.md](wsgi.md#behind-a-proxy)).",
                    default_text="none",
                    example='["10.0.0.5", "2001:db8::/32"]',
                ),
                Key(
                    "proxy_headers",
                    Kind.CHOICE,
                    limits.PROXY_HEADERS[0],
                    "Which headers the trusted proxies write: X-Forwarded-For, -Proto, -Host and -Port, or Forwarded "
                    "(RFC 7239); the others are nobody's word.",
                    choices=limits.PROXY_HEADERS,
                ),
                Key(
                    "allow",
                    Kind.ADDRESSES,
                    (),
                    "Addresses, such as a database's, to which the tenant may open TCP connections; everything else "
                    "stays shut. In compose its container has to say so as well: docs/first-tenant.md.",
                    default_text="none",
                    example='["10.5.0.2:5432"]',
                ),
                Key(
                    "error_pages",
                    Kind.ERROR_PAGES,
                    {},
                    'The bodies of errors that the server answers itself: a status ("404"), or a class of them '
                    '("5xx"), and the file below `root` that is sent with it, at most 1 MiB. Such a file may be '
                    "hidden (`.errors/404.html`): then it can't be asked for by itself.",
                    default_text="one line of plain text",
                    example='{ 404 = "404.html", 5xx = "sorry.html" }',
                ),
            ),
            (
                Table(
                    "pool",
                    "A tenant's worker processes: how many, and when one is replaced (docs/pools.md).",
                    (
                        Key(
                            "mode",
                            Kind.CHOICE,
                            _POOL.mode,
                            "static: always max_workers; dynamic: as many as the load takes, with some free; ondemand: "
                            "none until a connection comes, which waits for the first.",
                            choices=limits.POOL_MODES,
                        ),
                        count(
                            "max_workers",
                            _POOL.max_workers,
                            "The most workers at a time.",
                            limits.WORKERS,
                            "processes",
                        ),
                        count(
                            "start_workers",
                            _POOL.start_workers,
                            "Workers that are ready before the first connection is taken; 0: all (static), min_spare "
                            "(dynamic), none (ondemand).",
                            limits.SPARE,
                            "processes",
                        ),
                        count(
                            "min_spare",
                            _POOL.min_spare,
                            "dynamic: so many workers are kept without work, for what comes next.",
                            limits.SPARE,
                            "processes",
                        ),
                        count(
                            "max_spare",
                            _POOL.max_spare,
                            "dynamic: with more than so many without work, those idle for idle_timeout leave; 0: "
                            "min_spare + 3.",
                            limits.SPARE,
                            "processes",
                        ),
                        seconds(
                            "idle_timeout",
                            _POOL.idle_timeout,
                            "How long a worker that isn't needed may be without work before it leaves (dynamic, "
                            "ondemand).",
                        ),
                        count(
                            "max_requests",
                            _POOL.max_requests,
                            "A worker retires after so many requests; 0: never.",
                            limits.COUNT,
                            "requests",
                        ),
                        count(
                            "max_threads",
                            _POOL.max_threads,
                            "The most threads of a worker that serve requests; above 1, the application must be "
                            "thread-safe.",
                            limits.THREADS,
                            "threads",
                        ),
                        seconds(
                            "thread_wait",
                            _POOL.thread_wait,
                            "A worker starts another thread when all are busy and a request has waited for so long.",
                            limits.THREAD_WAIT,
                        ),
                        seconds(
                            "thread_idle",
                            _POOL.thread_idle,
                            "A thread that was added ends when it has had nothing to do for so long.",
                        ),
                        seconds(
                            "slow_request",
                            _POOL.slow_request,
                            "A request that takes longer is logged, with a traceback of the worker's threads; 0: none "
                            "is. Time in which it waits for its client doesn't count.",
                            limits.REQUEST_AGE,
                        ),
                        seconds(
                            "request_timeout",
                            _POOL.request_timeout,
                            "A request that takes longer is answered 504 and ends its worker, once the worker's other "
                            "requests are done; 0: never. Time in which it waits for its client doesn't count.",
                            limits.REQUEST_AGE,
                        ),
                        seconds(
                            "max_age",
                            _POOL.max_age,
                            "A worker retires at this age; 0: never.",
                            limits.AGE,
                        ),
                        seconds(
                            "hard_age",
                            _POOL.hard_age,
                            "While connections wait for a worker, retirements are postponed, but none beyond this age; "
                            "0: twice max_age, or two hours where that is off.",
                            limits.AGE,
                        ),
                        count(
                            "max_memory",
                            _POOL.max_memory,
                            "A worker retires when it has got so much memory of its own; 0: no limit.",
                            limits.MEMORY,
                            "bytes",
                        ),
                        seconds(
                            "max_cpu",
                            _POOL.max_cpu,
                            "A worker retires after so many seconds of CPU time; 0: never.",
                            limits.CPU_SECONDS,
                        ),
                        count(
                            "max_processes",
                            _POOL.max_processes,
                            "Processes and threads that the tenant's uid may have, its own programs among them; 0: "
                            "128, and 4 x (max_workers + 1) x (max_threads + 2). As an ordinary user there is no such "
                            "limit.",
                            limits.PROCESSES,
                            "processes",
                        ),
                    ),
                ),
                Table(
                    "queue",
                    "What may wait for a tenant, so that a slow one harms only itself.",
                    (
                        count(
                            "limit",
                            16384,
                            "Connections that wait for a worker; further ones get 503. The default is as many as a "
                            "listener holds: then it is timeout that counts, and others' share of what is short.",
                            limits.QUEUE,
                            "connections",
                        ),
                        seconds(
                            "timeout", 10.0, "How long one may wait before it gets 503.", limits.QUEUE_TIMEOUT
                        ),
                        count(
                            "handovers",
                            256,
                            "Connections given to workers that have not yet said that they took them.",
                            limits.HANDOVERS,
                            "connections",
                        ),
                    ),
                ),
                Table(
                    "http",
                    "A tenant's HTTP.",
                    (
                        count(
                            "head_limit",
                            _HTTP.head_limit,
                            "The longest request head; a longer one gets 431.",
                            limits.HEAD_LIMIT,
                            "bytes",
                        ),
                        count(
                            "request_line_limit",
                            _HTTP.request_line_limit,
                            "The longest request line; a longer one gets 414.",
                            limits.REQUEST_LINE_LIMIT,
                            "bytes",
                        ),
                        count(
                            "max_headers",
                            _HTTP.max_headers,
                            "The most header fields of a head; more get 431.",
                            limits.MAX_HEADERS,
                            "fields",
                        ),
                        count(
                            "body_limit",
                            _HTTP.body_limit,
                            "The longest request body; a longer one gets 413.",
                            limits.BODY_LIMIT,
                            "bytes",
                        ),
                        count(
                            "body_buffer",
                            _HTTP.body_buffer,
                            "A body of a known length up to this is received before the application is asked, so that "
                            "a slow one costs memory and no thread; longer ones, chunked ones and those announced by "
                            "Expect are read by the application as they come. 0: all are.",
                            limits.BODY_BUFFER,
                            "bytes",
                        ),
                        seconds(
                            "head_timeout",
                            _HTTP.head_timeout,
                            "From a head's first byte to its last, else 408.",
                        ),
                        seconds(
                            "idle_timeout",
                            _HTTP.idle_timeout,
                            "How long a kept connection may wait for its next request.",
                        ),
                        seconds(
                            "write_timeout",
                            _HTTP.write_timeout,
                            "How long a client may take none of a response.",
                        ),
                        seconds(
                            "read_timeout", _HTTP.read_timeout, "How long a client may send none of a body."
                        ),
                        count(
                            "min_body_rate",
                            _HTTP.min_body_rate,
                            "How fast a body must come, over the time that we wait for it, else 408; 0: at any pace. "
                            "Together with body_limit it bounds how long a client can hold a thread.",
                            limits.RATE,
                            "bytes/s",
                        ),
                        count(
                            "min_read_rate",
                            _HTTP.min_read_rate,
                            "How fast a client must take its response, over the time that we wait for it, else the "
                            "connection is closed; 0: at any pace.",
                            limits.RATE,
                            "bytes/s",
                        ),
                        seconds(
                            "rate_grace",
                            _HTTP.rate_grace,
                            "A client may lag behind a rate by so much, at the start and later: who is slow for a "
                            "moment may catch up.",
                            limits.RATE_GRACE,
                        ),
                        Key(
                            "stress_factor",
                            Kind.NUMBER,
                            _HTTP.stress_factor,
                            "While all workers are busy and somebody waits, the timeouts above and rate_grace are "
                            "multiplied by this and the rates divided; 1: never.",
                            bounds=limits.STRESS_FACTOR,
                            example=str(_HTTP.stress_factor),
                        ),
                        count(
                            "max_connections_per_client",
                            _HTTP.max_connections_per_client,
                            "Connections of one client (an IPv4 address, an IPv6 /64) at a time, over all workers; one "
                            "more gets 429. 0: no limit. Connections of `trusted_proxies` don't count; mind that many "
                            "people share an address.",
                            limits.PER_CLIENT,
                            "connections",
                        ),
                        count(
                            "max_keepalive_requests",
                            _HTTP.max_keepalive_requests,
                            "Requests on one connection before it is closed; 0: no limit.",
                            limits.COUNT,
                            "requests",
                        ),
                        Key(
                            "keepalive",
                            Kind.FLAG,
                            _HTTP.keepalive,
                            "Whether connections are kept between requests; false behind a proxy that mixes hosts.",
                        ),
                        Key(
                            "engine",
                            Kind.CHOICE,
                            _HTTP.engine,
                            "The HTTP parser. `h11` is the strict reference: much slower, a second opinion.",
                            choices=limits.ENGINES,
                        ),
                    ),
                ),
                *_KIND_TABLES,
                MOUNT,
            ),
            named=True,
        ),
    ),
)
