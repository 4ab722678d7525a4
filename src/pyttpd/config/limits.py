"""The bounds of every configured value, each with its reason. Used by the schema (what an operator may write) and by
the shares (what a role believes from master), so that the two can't drift apart. Lean: roles import it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pyttpd.roles import MAX_LISTENERS, MAX_UID, MIN_VHOST_UID, ROLES, TENANT_METRICS_OFFSET, Role


@dataclass(frozen=True, slots=True)
class Range:
    """A closed interval of numbers. `0` is often a special value; the key's documentation says so."""

    low: int | float
    high: int | float

    def __contains__(self, value: int | float) -> bool:
        return self.low <= value <= self.high  # False for NaN


# --- files --------------------------------------------------------------------------------------------------
#: All files together: 10,000 vhosts with 100,000 names take about 6 MB; more is a mistake, not a configuration.
MAX_CONFIG_BYTES = 16 * 1024 * 1024
#: Files that `include` may match: a tenant a file, for those who generate them, up to a sensible folder.
MAX_CONFIG_FILES = 1000
#: Errors told at once; a person reads the first twenty, a wrong generator makes a hundred thousand.
MAX_ERRORS = 1000

# --- shares -------------------------------------------------------------------------------------------------
#: One role's share: umaster's with 10,000 vhosts is about 1.3 MB; the names foreign to a wildcard may fill the rest.
MAX_SHARE_BYTES = 4 * 1024 * 1024
#: Of a vhost's share, what its names and the foreign ones may take; variables and paths fit in the other half.
MAX_SHARE_NAMES_BYTES = MAX_SHARE_BYTES // 2
#: The host map: 100,000 names of at most 253 characters.
MAX_HOST_MAP_BYTES = 32 * 1024 * 1024

# --- names --------------------------------------------------------------------------------------------------
#: Names become file names, metric labels, container names and process titles.
NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
NAME_RULE = 'a lower-case letter, then at most 31 lower-case letters, digits or "-"'
#: RFC 1035 2.3.4: 255 octets on the wire are 253 characters of text.
MAX_HOST_LENGTH = 253
#: One label of a host name, with the head scanner's tolerances: "_", and "-" at either end, are found in practice.
HOST_LABEL = re.compile(r"[a-z0-9_-]{1,63}")
#: Cheap test of many names at once, joined by line feeds: characters and length only (the loader checks the rest).
HOST_LINES = re.compile(r"(?:(?:\*\.)?[a-z0-9._\-]{1,253}+\n|\[[0-9a-f:.]{2,45}\]\n)*+")
#: A WSGI application as everybody writes it: "package.module:attribute.of.it".
APPLICATION = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*")
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

#: Linux's PATH_MAX; longer ones can't be opened.
MAX_PATH_LENGTH = 4096
MAX_APPLICATION_LENGTH = 255
#: Environment of a tenant: far below the kernel's limit for one string (128 KiB) and for exec.
MAX_ENV_ENTRIES = 256
MAX_ENV_BYTES = 64 * 1024
#: Entries of python_path and writable; each becomes a Landlock rule.
MAX_PATHS = 64
#: Entries of trusted_proxies. Content delivery networks publish some twenty.
MAX_PROXIES = 256
#: Entries of allow: a database, its replicas, a cache. Each is a rule in two locks, and a hole somebody has to know of.
MAX_ALLOWED = 16
#: Names that one vhost may have (the whole tree: roles.MAX_NAMES).
MAX_HOSTS_PER_VHOST = 20_000

# --- mounts -------------------------------------------------------------------------------------------------
#: Mounts of one vhost: one for each application and folder. Looking one up costs the same for all of them.
MAX_MOUNTS = 64
#: Bytes of a mount's path: as long as a file's name; it is compared with each request's.
MAX_MOUNT_PATH = 255
#: One that is a fallback only.
NAMED_MOUNT = re.compile(f"@{NAME.pattern}")
#: What a path can't have in it, or would have to be encoded to be sent.
NOT_IN_MOUNT_PATH = frozenset(" ?#\\")

# --- static files and error pages ---------------------------------------------------------------------------
#: Names that a folder's request tries, one open(2) each.
MAX_INDEX_NAMES = 8
#: A file's name: Linux's NAME_MAX.
MAX_FILE_NAME = 255
#: Patterns are tried in turn for each file that isn't in the cache.
MAX_CACHE_PATTERNS = 64
MAX_PATTERN_LENGTH = 256
#: Stars in one, or pairs of them: each multiplies the work of a comparison by the length of the path.
WILDCARD = re.compile(r"\*+")
MAX_WILDCARDS = 4
#: More types than the whole table of those that we know has.
MAX_TYPES = 512
#: One for each status that has a name.
MAX_ERROR_PAGES = 64
#: One of them: a worker keeps it in memory, and sends it as one piece.
MAX_ERROR_PAGE_BYTES = 1 << 20
#: What follows the last dot of a name, with it.
SUFFIX = re.compile(r"\.[^\s./\x00-\x1f\x7f]{1,32}")
#: RFC 9110 section 8.3.1, with at most a few parameters in their plain form.
MEDIA_TYPE = re.compile(
    r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}(?:; ?[a-z0-9-]{1,32}=[\w.+-]{1,64}){0,4}",
    re.ASCII,
)
CHARSET = re.compile(r"[A-Za-z0-9._:+-]{1,40}")
#: A header's value: RFC 9110 section 5.5 without what is obsolete.
HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,510}[\x21-\x7e])?")
#: A status that is an error, or all of a class.
ERROR_STATUS = re.compile(r"[45](?:[0-9]{2}|xx)")
#: Paths kept with their open files and heads in one process: a descriptor, or at most 32 KiB, each.
STATIC_CACHE = Range(0, 65536)

# --- programs -----------------------------------------------------------------------------------------------
#: A command of a mount: the program and its arguments, and the bytes of one. What is longer belongs into a file.
MAX_COMMAND = 64
#: sun_path has 108 bytes, the last of them a NUL (unix(7)).
MAX_SOCKET_PATH = 107
#: Suffixes of scripts: PHP's many, and some to spare.
MAX_SUFFIXES = 16
#: Idle connections that a worker keeps to one application.
KEPT = Range(0, 256)
MAX_ARGUMENT = 4096
#: Mounts of one vhost that have processes of their own: their sockets are made before anything is known of the vhost.
MAX_COMMANDS = 16
#: Interpreters of one mount: more than there are languages that anybody writes scripts in.
MAX_HANDLERS = 32

# --- asgi ---------------------------------------------------------------------------------------------------
LIFESPANS = ("auto", "on", "off")
EVENT_LOOPS = ("asyncio", "uvloop")
#: Tasks of one process: each has a connection, of which a process has no more descriptors for.
MAX_CONCURRENCY = Range(1, 100_000)
#: A message is in memory as a whole, once for each connection: less than any is useless, more is for HTTP.
WEBSOCKET_MAX_SIZE = Range(1, 256 * 1024 * 1024)
#: Pings and idle time; 0: none.
WEBSOCKET_TIME = Range(0, 86_400)

# --- numbers ------------------------------------------------------------------------------------------------
GENERATION = Range(1, 2**63 - 1)
GRACE = Range(0, 3600)
#: Any group but root's.
ADMIN_GID = Range(1, MAX_UID)
PORT = Range(1, 65535)
#: Eleven ports are counted from here; below 1024 init would need its privilege for metrics too.
BASE_PORT = Range(1024, 65535 - TENANT_METRICS_OFFSET)
#: listen(2) truncates to net.core.somaxconn anyway.
BACKLOG = Range(1, 65535)
LISTENER_UID = Range(ROLES[Role.LISTENER].uid, MIN_VHOST_UID - 1)
#: In shares: the metrics listener's uid lies just below the others'.
ANY_LISTENER_UID = Range(ROLES[Role.LISTENER].uid - 1, MIN_VHOST_UID - 1)
VHOST_UID = Range(MIN_VHOST_UID, MAX_UID)
#: MSG_PEEK with edge-triggered epoll is reliable up to 64 KiB [tried: DESIGN section 3].
HEAD_LIMIT = Range(1024, 65536)
BODY_LIMIT = Range(0, 2**40)
#: Held in memory for each connection whose body is on its way, as heads are; 0: none is.
BODY_BUFFER = Range(0, 1024 * 1024)
#: No more than the largest head; less than 256 bytes is no address that applications can work with.
REQUEST_LINE_LIMIT = Range(256, 65536)
#: Browsers send twenty; a thousand field lines (nginx's bound) are the most that anybody was seen to need.
MAX_HEADERS = Range(8, 1000)
#: Below a tenth of a second an honest client on another continent fails; above an hour a stuck one is kept.
TIMEOUT = Range(0.1, 3600)
LINGER = Range(0, 60)
#: How long a program of kind cgi may take in all; 0: as long as it likes. A day is what a download may take.
PROGRAM_TIME = Range(0, 86400)
#: Whole seconds, as RLIMIT_CPU counts them.
PROGRAM_CPU = Range(0, 86400)
PROGRAM_OUTPUT = Range(0, 2**40)
#: Connections of one worker to one program of kind handoff: a descriptor each.
CHANNELS = Range(1, 256)
#: Bytes/s; 0: any pace will do. 1 GB/s is more than a client can be asked for.
RATE = Range(0, 1_000_000_000)
RATE_GRACE = Range(0, 3600)
#: 1: no stress mode; a hundredth of a timeout of seconds is as good as none.
STRESS_FACTOR = Range(0.01, 1)
#: 0: no limit.
PER_CLIENT = Range(0, 1_000_000)
#: One descriptor each (two while a connection is on its way): RLIMIT_NOFILE is the real bound.
MAX_CONNECTIONS = Range(1, 1_000_000)
WORKERS = Range(1, 1024)
COUNT = Range(0, 1_000_000_000)
#: All threads of a process share one interpreter lock and three quarters of its descriptors.
THREADS = Range(1, 256)
#: Below a millisecond, starting a thread takes longer than what it saves; above a minute no client waits.
THREAD_WAIT = Range(0.001, 60)
#: Above an hour nobody waits for an answer.
REQUEST_AGE = Range(0, 3600)
#: 0 is "none kept free": every new connection may have to wait for a fork.
SPARE = Range(0, 1024)
#: Below a tenth of a second a pool does nothing but fork; above 30 days nobody means it.
AGE = Range(0, 30 * 86_400)
#: An interpreter with an application takes 10 MB to begin with: less than 1 MiB of its own is a missing unit.
MEMORY = Range(0, 2**40)
MIN_MEMORY = 1 << 20
#: The kernel's own bound for all of a machine is 4 million.
PROCESSES = Range(0, 4_000_000)
CPU_SECONDS = Range(0, 30 * 86_400)
#: Each waiting connection is a descriptor in umaster.
QUEUE = Range(0, 65536)
#: Longer than a browser waits makes no sense in a queue.
QUEUE_TIMEOUT = Range(0.1, 300)
HANDOVERS = Range(1, 4096)
#: Less than 64 KiB is gone in a moment; a file of a terabyte is no log any more.
LOG_FILE_LIMIT = Range(65536, 2**40)

# --- choices ------------------------------------------------------------------------------------------------
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")
ACCESS_LOGS = ("combined", "json", "off")
MODES = ("http", "metrics")
PROXY_HEADERS = ("x-forwarded", "forwarded")
ENGINES = ("llhttp", "h11")
POOL_MODES = ("static", "dynamic", "ondemand")
#: Content codings (RFC 9110 section 8.4.1) for which a packed file may lie beside another.
CODINGS = ("br", "zstd", "gzip")
#: Listeners in umaster's share: the configured ones and the metrics listener.
MAX_LISTENER_PEERS = MAX_LISTENERS + 1
