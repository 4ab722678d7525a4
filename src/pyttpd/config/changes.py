"""What a reload would change: two configurations compared, as a plan for those who carry it out and for a person.

Rules
  1. Compared is what is in force and not what is written: a default that was written out is no change.
  2. `Plan.vhosts` and `Plan.listeners` are those whose *share* changes, or who are new or gone; nobody else is touched.
  3. What takes more than a reload is said: a new container, a port to be published, a restart. Which of these it takes
     depends on the form: see `lines`.
  4. Values of `env` are never shown: they hold passwords.

In step with: model.py (every field of a Config is compared), docs/operating.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING

from pyttpd.config.errors import printable
from pyttpd.roles import METRICS_LISTENER

if TYPE_CHECKING:
    from pyttpd.config.kinds import Mount
    from pyttpd.config.model import Config, Listener, Vhost

#: A value is shown up to so many characters.
MAX_SHOWN = 60
#: What a tenant's processes are started with, and can't be given later: its container, or its keeper, has to be
#: made anew.
_OF_THE_CONTAINER = ("uid", "gid", "allow")
#: What the mount namespace of a tenant is made of; in a container it is the image's and the compose file's.
_OF_THE_VIEW = ("root", "python_path", "virtualenv", "writable", "log_files", "folders")
#: Tables whose values are nobody else's affair: only the names of what changes are shown.
_SECRET = ("env", "params")


@dataclass(frozen=True, slots=True)
class Change:
    """One table that changes. sign: "+", "-" or "~". what: "vhost", "listen" or "" for the tree. details: one line
    for each key. takes: what it takes beyond the reload: "container", "view", "port", "queue" (umaster alone) or "".
    """

    sign: str
    what: str
    name: str
    details: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()

    @property
    def table(self) -> str:
        return (
            f"[{self.what}.{self.name}]"
            if self.what
            else f"[{self.name}]"
            if self.name
            else "top of the file"
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What changes. vhosts, listeners: names whose share isn't the same. umaster: whether its share or the map
    isn't.
    """

    changes: tuple[Change, ...] = ()
    vhosts: tuple[str, ...] = ()
    listeners: tuple[str, ...] = ()
    umaster: bool = False

    def __bool__(self) -> bool:
        return bool(self.changes)


def compare(old: Config, new: Config) -> Plan:
    """Return what changes from `old` to `new`."""
    changes = list(_top(old, new))
    common = old.log != new.log or old.grace != new.grace
    listeners = []
    for name in _names(old.listeners, new.listeners):
        one, other = _find(old.listeners, name), _find(new.listeners, name)
        found = _listener(one, other)
        if found is not None:
            # The tenants' metrics listener moves with [metrics], which has been said.
            changes += [found] if name != METRICS_LISTENER else []
        if found is not None or common:
            listeners.append(name)
    before = {vhost.name: vhost for vhost in old.vhosts}
    after = {vhost.name: vhost for vhost in new.vhosts}
    vhosts = []
    peers = False
    for name in dict.fromkeys((*before, *after)):
        was, now = before.get(name), after.get(name)
        if was is now or (was is not None and now is not None and was == now):
            if common or old.foreign(name) != new.foreign(name):
                vhosts.append(name)
            continue
        change = _vhost(was, now)
        changes.append(change)
        if was is None or now is None:
            vhosts.append(name)
            peers = True
            continue
        peers = peers or was.queue != now.queue or was.uid != now.uid or was.hosts != now.hosts
        peers = peers or was.default != now.default
        if replace(was, queue=now.queue) != now or common or old.foreign(name) != new.foreign(name):
            vhosts.append(name)
    return Plan(tuple(changes), tuple(vhosts), tuple(listeners), common or peers or bool(listeners))


def _names(one: tuple[Listener, ...], other: tuple[Listener, ...]) -> list[str]:
    return list(dict.fromkeys(each.name for each in (*one, *other)))


def _find(listeners: tuple[Listener, ...], name: str) -> Listener | None:
    return next((each for each in listeners if each.name == name), None)


def _top(old: Config, new: Config) -> Iterator[Change]:
    details = [
        _line(key, getattr(old, key), getattr(new, key))
        for key in ("runtime_dir", "grace", "admin_gid")
        if getattr(old, key) != getattr(new, key)
    ]
    if details:
        takes = ("restart",) if old.runtime_dir != new.runtime_dir else ()
        yield Change("~", "", "", tuple(details), takes)
    for name, one, other, takes in (
        ("log", old.log, new.log, ()),
        ("metrics", old.metrics, new.metrics, ("port",)),
    ):
        if one != other:
            yield Change("~", "", name, tuple(_differences(one, other)), takes)


def _listener(old: Listener | None, new: Listener | None) -> Change | None:
    if old is None or new is None:
        one = new or old
        assert one is not None
        sign, needs = ("+", ("process", "port")) if old is None else ("-", ("process",))
        return Change(sign, "listen", one.name, (f"address = {one.address}",), needs)
    if old == new:
        return None
    takes = [] if old.address == new.address else ["port"]
    if old.uid != new.uid:
        takes.append("container")
    return Change("~", "listen", new.name, tuple(_differences(old, new)), tuple(takes))


def _vhost(old: Vhost | None, new: Vhost | None) -> Change:
    if old is None or new is None:
        one = new or old
        assert one is not None
        details = (f"hosts = {_shown(one.hosts)}", f"uid = {one.uid}", f"root = {_shown(one.root)}")
        return Change("+" if old is None else "-", "vhost", one.name, details, ("process",))
    takes = []
    if needs_container(old, new):
        takes.append("container")
    elif needs_view(old, new):
        takes.append("view")
    if replace(old, queue=new.queue) == new:
        takes.append("queue")
    return Change("~", "vhost", new.name, tuple(_differences(old, new)), tuple(takes))


def needs_container(old: Vhost, new: Vhost) -> bool:
    """Whether `new` takes processes that are started anew: a successor within the same container won't do."""
    return any(getattr(old, key) != getattr(new, key) for key in _OF_THE_CONTAINER)


def needs_view(old: Vhost, new: Vhost) -> bool:
    """Whether `new` takes another mount namespace (plain mode as root)."""
    return any(getattr(old, key) != getattr(new, key) for key in _OF_THE_VIEW)


def _differences(old: object, new: object, prefix: str = "") -> Iterator[str]:
    """Yield a line for each key that differs between two dataclasses of one class."""
    for each in fields(old):  # type: ignore[arg-type]
        if not each.compare:
            continue
        one, other = getattr(old, each.name), getattr(new, each.name)
        if one == other:
            continue
        key = f"{prefix}{each.name}"
        if each.name == "mounts":
            yield from _mounts(one, other)
        elif is_dataclass(one) and type(one) is type(other) and type(one).__str__ is object.__str__:
            yield from _differences(one, other, f"{key}.")
        elif each.name in _SECRET and isinstance(one, Mapping) and isinstance(other, Mapping):
            keys = sorted(k for k in {*one, *other} if one.get(k) != other.get(k))
            yield f"{key}: {', '.join(keys)}"
        else:
            yield _line(key, one, other)


def _mounts(old: tuple[Mount, ...], new: tuple[Mount, ...]) -> Iterator[str]:
    """Yield a line for each key that differs between a vhost's mounts, and one for each that comes or goes."""
    before = {mount.path: mount for mount in old}
    after = {mount.path: mount for mount in new}
    alone = (
        before.keys() == after.keys() == {"/"}
    )  # as in a vhost's own table, where each kind has one (kind_keys.py)
    found = False
    for path in dict.fromkeys((*before, *after)):
        was, now = before.get(path), after.get(path)
        if was == now:
            continue
        found = True
        prefix = "" if alone else f"mount {path}: "
        if was is None or now is None or was.kind != now.kind:
            yield _line(f"{prefix}kind", was and was.kind, now and now.kind)
        else:
            yield from _differences(was.options, now.options, f"{was.kind}." if alone else prefix)
    if not found:
        yield "mount: in another order"


def _line(key: str, old: object, new: object) -> str:
    return f"{key}: {_shown(old)} -> {_shown(new)}"


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        text = ", ".join(str(item) for item in value) or "none"
    else:
        text = "none" if value is None else str(value)
    return printable(text, MAX_SHOWN)


#: What a change takes, in words: by what the plan says, in containers and as plain processes.
_WORDS: dict[tuple[str, str, str], tuple[str, str]] = {
    ("+", "vhost", "process"): (
        "needs a container: docker compose up -d vhost-{name}",
        "its processes are started",
    ),
    ("-", "vhost", "process"): (
        "its container can go: docker compose rm -sf vhost-{name}",
        "its processes end",
    ),
    ("+", "listen", "process"): (
        "needs a container: docker compose up -d listener-{name}",
        "its process is started",
    ),
    ("-", "listen", "process"): (
        "it accepts no more; its container can go: docker compose rm -sf listener-{name}",
        "it accepts no more, finishes, and ends",
    ),
    ("+", "listen", "port"): ("a new port: publish it in `ports` of the service net", "a new port"),
    ("~", "listen", "port"): ("a new port: publish it in `ports` of the service net", "a new port"),
    ("~", "listen", "container"): (
        "needs its container anew, with `user`: docker compose up -d listener-{name}",
        "its process is started anew",
    ),
    ("~", "", "port"): ("new ports: publish them in `ports` of the service net", "new ports"),
    ("~", "", "restart"): ("has no effect in containers", "takes a restart of the tree"),
    ("~", "vhost", "container"): (
        "needs its container anew, with `user` and `--allow`: docker compose up -d vhost-{name}",
        "all its processes are started anew, and the old ones end when those serve",
    ),
    ("~", "vhost", "view"): (
        "new workers; what it names must be in its container",
        "all its processes are started anew, and the old ones end when those serve",
    ),
    ("~", "vhost", "queue"): ("its workers are not touched", "its workers are not touched"),
    ("~", "vhost", ""): ("new workers", "new workers"),
}


def lines(plan: Plan, *, plain: bool) -> list[str]:
    """Return the plan as text, like a diff: one line for each table, with what it takes, and one for each key."""
    if not plan:
        return ["nothing changes"]
    found = []
    for change in plan.changes:
        words = [
            _WORDS[change.sign, change.what, takes][plain].format(name=change.name)
            for takes in change.takes or (("",) if change.what == "vhost" else ())
        ]
        found.append(f"{change.sign} {change.table}{': ' + '; '.join(words) if words else ''}")
        found += [f"    {detail}" for detail in change.details]
    said = {change.name for change in plan.changes if change.what == "vhost"}
    others = [name for name in plan.vhosts if name not in said]
    if others:
        found.append(f"{len(others)} more vhosts get new workers, since what they share with others changes")
    return found
