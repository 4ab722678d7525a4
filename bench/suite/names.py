"""100,000 host names: what routing takes beside a tree with 10 names, and what umaster needs in memory for them.

Two trees serve at the same time and are measured in turns: ten tenants each, with one name or 10,000 names each, the
tenth's being wildcards. Every connection is new and asks for another name, at random among all that there are. Routing
is umaster's and the listener's processor time for a connection: the first looks the name up, the second reads it. What
the look-up alone takes is measured with the same map and the same names in this process.
"""

from __future__ import annotations

import contextlib
import random
import time

from pyttpd.config.shares import HostMap

from suite import peers
from suite.clients import Target, WrongAnswer, wrk
from suite.figures import OURS, Limit, Options, Row, Study
from suite.machine import named, private_memory, running_time
from suite.peers import Peer, Setting, running

TENANTS = 10
SMALL, LARGE = 10, 100_000
FEW, MANY = f"{SMALL} names", f"{LARGE:,} names"
CONNECTIONS = 32
#: Names that are looked up in this process, in each round.
LOOKUPS = 100_000
#: Routing: at most so much more with many names.
BAR = Limit(FEW, most=1.2)
BODY = b"Hello, world!"
#: So many names, chosen at random, are looked at before and after each round.
CHECKED = 50

#: A name for each connection, without the client becoming the bottleneck: the same arithmetic as `name`.
LUA = """
math.randomseed(%d)
local random, format = math.random, string.format
function request()
  local n = random(0, %d)
  local host = n %% 10 == 9 and format("any.w%%d.customers%%d.example", n, n %% 1000)
    or format("shop%%d.customers%%d.example", n, n %% 1000)
  return "GET / HTTP/1.1\\r\\nHost: " .. host .. "\\r\\nConnection: close\\r\\n\\r\\n"
end
"""


def configured(number: int) -> str:
    """A name as it stands in the configuration; every tenth is a wildcard."""
    return ("*.w" if number % 10 == 9 else "shop") + f"{number}.customers{number % 1000}.example"


def asked(number: int) -> str:
    """A name that belongs to it."""
    return configured(number).replace("*", "any")


def tree(count: int) -> Peer:
    """A tree with `count` names."""

    def start(setting: Setting) -> list[list[str]]:
        folder = setting.folder / "site"
        folder.mkdir(mode=0o755)
        (folder / "index.html").write_bytes(BODY)
        tables = "".join(
            f'[vhost.t{each}]\nhosts = [{", ".join(hosts(count, each))}]\nuid = {20001 + each}\nkind = "static"\n'
            f'root = "{folder}"\naccess_log = "{"combined" if setting.log else "off"}"\npool = {{ max_workers = 1 }}\n'
            for each in range(TENANTS)
        )
        return peers.tree(setting, tables)

    def hosts(count: int, tenant: int) -> list[str]:
        return [f'"{configured(number)}"' for number in range(tenant, count, TENANTS)]

    return Peer(f"{count:,} names", start, peers.OUR_VERSION)


def host_map(count: int) -> HostMap:
    """The map that the tree's umaster has."""
    owners = {configured(number): f"t{number % TENANTS}" for number in range(count)}
    exact = {name: owner for name, owner in owners.items() if name[0] != "*"}
    return HostMap(1, exact, {name[2:]: owner for name, owner in owners.items() if name[0] == "*"}, None)


def look_up(where: HostMap, count: int) -> float:
    """Seconds for a name, which is a new object each time, as in life."""
    chosen = random.Random(LOOKUPS)
    names = [asked(chosen.randrange(count)).encode() for _ in range(LOOKUPS)]
    find = where.find
    begin = time.process_time()
    for name in names:
        if find(name.decode()) is None:
            raise WrongAnswer(f"nobody owns {name!r}")
    return (time.process_time() - begin) / LOOKUPS


def checked(port: int, count: int, seed: int) -> Target:
    """Ask for some names, and look at every byte; return what is asked for."""
    chosen = random.Random(seed)
    names = {asked(chosen.randrange(count)): BODY for _ in range(CHECKED)}
    target = Target(port, "/", names)
    target.check()
    return target


def measure(options: Options) -> list[Row]:
    """Both trees, in turns; then the look-up alone."""
    trees = {FEW: SMALL, MANY: LARGE}
    figures = (
        ("routing a connection: umaster and listener", "us", (BAR,)),
        ("... umaster", "us", (BAR,)),
        ("... listener", "us", ()),
        ("connections/s of the tree", "1/s", ()),
        ("the look-up alone", "us", ()),
        ("umaster's memory", "MB", ()),
    )
    rows = {
        (figure, name): Row(figure, name, unit, bars=bars if name == MANY else ())
        for figure, unit, bars in figures
        for name in trees
    }

    def note(name: str, *values: float) -> None:
        for (figure, _, _), value in zip(figures, values, strict=True):
            rows[figure, name].values.append(value)

    maps = {name: host_map(count) for name, count in trees.items()}
    with contextlib.ExitStack() as stack:
        servers = {
            name: stack.enter_context(running(tree(count), log=options.log, pin=options.pin))
            for name, count in trees.items()
        }
        for name, (port, _) in servers.items():
            Target(port, "/", {asked(0): BODY}).wait()
            checked(port, trees[name], 0)
        for number in range(options.rounds + 1):  # the first round warms up
            for name, (port, pids) in servers.items():
                target = checked(port, trees[name], number)
                roles = named(pids)
                umaster, listener = roles["pyttpd-umaster"], roles["l:http"]
                before = running_time(umaster), running_time(listener)
                script = LUA % (number, trees[name] - 1)
                load = wrk(
                    target, options.turn(number), CONNECTIONS, close=True, pin=options.pin, script=script
                )
                if load.errors:
                    raise WrongAnswer(f"{name}: {load.errors} wrong answers")
                used = running_time(umaster) - before[0], running_time(listener) - before[1]
                of_each = [1e6 * each / load.requests for each in used]
                if number:
                    note(
                        name,
                        sum(of_each),
                        *of_each,
                        load.rate,
                        1e6 * look_up(maps[name], trees[name]),
                        private_memory(umaster) / 1024 / 1024,
                    )
            if number:
                said = (
                    f"{row.figure} ({row.server}) {row.values[-1]:.3g} {row.unit}" for row in rows.values()
                )
                print(f"    round {number}: {', '.join(said)}", flush=True)
    return list(rows.values())


STUDY = Study("names", "100,000 host names", measure, ((OURS, peers.OUR_VERSION),))
