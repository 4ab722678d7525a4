"""What the runner does at a reload: it stands where the engine of containers stands otherwise.

Theory of operation. master's keeper asks, over a pair that the runner made for it, with the words of
`pyttpd.office`. The runner reads the configuration in a forked reader, with its own rights, and hands down what
came of it; master does the rest of the reading no second time. Then, for each word:

    prepare   namespaces for new tenants with `allow`, folders, the egress rule for the new uids too: whatever can fail
    adopt     who is new is started; whose processes have to be made anew (another uid, root, `allow`) gets a second
    keeper           beside the first, which is asked to leave when the second is ready
    retire    who has lost its table is asked to leave: umaster sends nobody there any more
    drop      nothing of it is kept

Of the egress rule the uids only ever grow while the tree runs, since sockets of a uid may outlive its table; an
exception from it ends with the last process that was started for it, or with the plan that nobody adopted.

As an ordinary user new parts need doors as well (rendezvous.py): each keeper that binds has such a pair, through
which it gets the far ends, and keeps them for whoever of its role comes after.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pyttpd import health, namespaces, office
from pyttpd.config import startup
from pyttpd.config.changes import needs_container, needs_view
from pyttpd.config.model import Config
from pyttpd.office import Outcome, Reader
from pyttpd.rendezvous import Door
from pyttpd.roles import ROLES, Role
from pyttpd.service import StartError

from pyttpd_init import egress

if TYPE_CHECKING:
    from pyttpd_init.plain import Instance, Runner

_MAX_WORD = 64


@dataclass(slots=True)
class Prepared:
    """What is ready for a configuration that isn't in force: new parts, and those that take somebody's place."""

    config: Config
    new: list[Instance] = field(default_factory=list)
    gone: list[Instance] = field(default_factory=list)


class Steward:
    """See the module's text."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._links: dict[Role, tuple[socket.socket, socket.socket]] = {}
        self._reader: Reader | None = None
        self._prepared: Prepared | None = None
        self._gone: list[Instance] = []
        self._uids: set[int] = set()
        self._allowed: set[egress.Allowed] = set()
        self._number = 0

    # ---- what the runner calls ----

    def link(self, role: Role) -> None:
        """Make the pair between us and the keeper of `role`, which lasts as long as the tree."""
        ours, theirs = office.pair()
        self._links[role] = ours, theirs
        # The kernel says by a signal that something has come, which the runner waits for anyway.
        fcntl.fcntl(ours, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(ours, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)

    def descriptor(self, child: Instance) -> int:
        """Return the descriptor that `child` is started with, -1 if it has none."""
        from pyttpd_init.plain import GateInstance

        found = None if isinstance(child, GateInstance) else self._links.get(child.role)
        return -1 if found is None else found[1].fileno()

    def hold_back(self, uids: set[int], allowed: set[egress.Allowed]) -> None:
        """Set the egress rule for these, and for whom it has held for before. Raises egress.EgressError."""
        uids, allowed = self._uids | uids, self._allowed | allowed
        runner = self._runner
        egress.set_egress(
            [egress.UidRange(10_000, 10_000), *(egress.UidRange(uid, uid) for uid in sorted(uids))],
            allowed=sorted(allowed, key=str),
            table=runner.table,
        )
        egress.verify_egress(by_uid=True, allowed=sorted(allowed, key=str), table=runner.table)
        self._uids, self._allowed = uids, allowed

    @property
    def pids(self) -> set[int]:
        return set() if self._reader is None else {self._reader.pid}

    @property
    def waits(self) -> bool:
        """Whether a second keeper is waited for, whose readiness nothing tells."""
        return any(child.replaces is not None for child in self._runner.children)

    def turn(self, now: float) -> None:
        """Do what there is to do."""
        reader = self._reader
        if reader is not None:
            if select.select([reader.done], [], [], 0)[0]:
                self._reader = None
                self._settle(reader.take())
            elif now > reader.until:
                self._reader = None
                reader.end()
                self._settle(Outcome.refusal("the configuration could not be read in time"))
        link = self._links.get(Role.MASTER)
        while link is not None:
            try:
                word = link[0].recv(_MAX_WORD)
            except BlockingIOError:
                break
            self._hear(word)
        self._look_for_replacements()

    def gone(self, child: Instance) -> bool:
        """`child`'s keeper has ended; say whether that was to be."""
        if not child.asked:
            return False
        runner = self._runner
        runner.children.remove(child)
        runner.log.info("ended", child=child)
        self._clean(child)
        if child.allow:
            self._take_exceptions_back(child)
        return True

    def _take_exceptions_back(self, child: Instance) -> None:
        """Close again in the egress rule what was open for `child`, unless it is for somebody else as well."""
        runner = self._runner
        if not runner.as_root:
            return
        ready = [] if self._prepared is None else self._prepared.new
        self._allowed = {
            egress.Allowed(address, one.uid) for one in (*runner.children, *ready) for address in one.allow
        }
        try:
            self.hold_back(set(), set())
        except egress.EgressError as error:
            runner.log.error(
                "an exception from the egress rule can't be taken back", child=child, error=error
            )

    def close(self) -> None:
        for ends in self._links.values():
            for end in ends:
                end.close()

    # ---- words ----

    def _hear(self, word: bytes) -> None:
        match word:
            case office.PREPARE:
                self._drop()
                runner = self._runner
                self._reader = Reader.start(_Reading(runner.file, runner.config))
            case office.ADOPT if self._prepared is not None:
                self._adopt(self._prepared)
            case office.RETIRE:
                self._retire()
            case office.DROP:
                self._drop()

    def _settle(self, outcome: Outcome) -> None:
        if not outcome.errors:
            outcome = self._prepare(outcome)
        fd = office.pack(outcome)
        try:
            office.say(self._links[Role.MASTER][0], office.OUTCOME, fd)
        finally:
            os.close(fd)

    def _prepare(self, outcome: Outcome) -> Outcome:
        from pyttpd_init.plain import log_folders

        config, runner = outcome.config, self._runner
        assert config is not None
        if config.runtime_dir != runner.config.runtime_dir:
            return Outcome.refusal("runtime_dir can't change while the tree runs: restart it", outcome.digest)
        prepared = Prepared(config)
        try:
            for vhost in config.vhosts:
                if runner.as_root:
                    log_folders(vhost)
            self._compare(prepared)
            if runner.as_root:
                self.hold_back(
                    {child.uid for child in prepared.new if child.uid},
                    {egress.Allowed(address, child.uid) for child in prepared.new for address in child.allow},
                )
        except (OSError, StartError, namespaces.NamespaceError, egress.EgressError) as error:
            for child in prepared.new:
                self._clean(child)
            return Outcome.refusal(str(error), outcome.digest)
        self._prepared = prepared
        return outcome

    def _compare(self, prepared: Prepared) -> None:
        """Find who is new and who has lost its table, and make what the new ones need."""
        from pyttpd_init.plain import gates, instances

        runner, config = self._runner, prepared.config
        parts = [child for child in runner.children if runner.is_part(child)]
        here = {(child.role, child.name): child for child in parts}  # of two, the one that comes
        wanted = {(each.role, each.name): each for each in instances(config)}
        prepared.gone = [child for child in parts if (child.role, child.name) not in wanted]
        for key, new in wanted.items():
            old = here.get(key)
            if old is not None and not self._differs(old, new, config):
                continue
            if old is not None:
                self._number += 1
                new.replaces, new.number = old, self._number
            found = [new]
            if new.allow and runner.as_root:
                found = [new, *gates([new])]
                found[1].number = new.number
            for child in found:
                prepared.new.append(child)
                runner.make_folders(child)

    def _differs(self, old: Instance, new: Instance, config: Config) -> bool:
        """Whether `new` can't be what `old`'s keeper starts next."""
        if old.role is Role.VHOST:
            one, other = self._runner.config.vhost(old.name), config.vhost(new.name)
            return needs_container(one, other) or (self._runner.as_root and needs_view(one, other))
        return (old.uid, old.gid) != (new.uid, new.gid)

    def _adopt(self, prepared: Prepared) -> None:
        from pyttpd_init.plain import GateInstance

        runner = self._runner
        self._prepared = None
        runner.config = prepared.config
        self._gone = prepared.gone
        for child in prepared.new:
            if not runner.as_root and not isinstance(child, GateInstance):
                self._make_doors(child)
            runner.children.append(child)
            runner.log.info("to be started", child=child)

    def _retire(self) -> None:
        gone, self._gone = self._gone, []
        for child in gone:
            self._ask_to_leave(child)

    def _drop(self) -> None:
        if self._reader is not None:
            self._reader.end()
            self._reader = None
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            for child in prepared.new:
                self._clean(child)
            opened = next((child for child in prepared.new if child.allow), None)
            if opened is not None:
                self._take_exceptions_back(opened)

    # ---- parts that come and go ----

    def _ask_to_leave(self, child: Instance) -> None:
        """Ask a keeper to leave for good, and the gate that is its tenant's with it."""
        from pyttpd_init.plain import GateInstance

        runner = self._runner
        runner.log.info("its table is gone, or another one serves: asked to leave", child=child)
        for one in list(runner.children):
            theirs = isinstance(one, GateInstance) and one.network == child.network and child.network >= 0
            if one is child or theirs:
                one.asked = True
                one.start_at = None
                if one.pid:
                    runner.kill(one, signal.SIGTERM)
                else:
                    self.gone(one)

    def _look_for_replacements(self) -> None:
        for child in [child for child in self._runner.children if child.replaces is not None]:
            if health.read(self._runner.health_file(child))[0]:
                old, child.replaces = child.replaces, None
                while old is not None:  # that one may have been to replace another
                    if old in self._runner.children and not old.asked:
                        self._ask_to_leave(old)
                    before, old.replaces = old.replaces, None
                    old = before

    def _clean(self, child: Instance) -> None:
        """Take away what was made for `child` alone."""
        from pyttpd_init.plain import GateInstance

        runner = self._runner
        self._take_doors_away(child)
        others = [one for one in runner.children if one.network == child.network]
        if child.network >= 0 and not isinstance(child, GateInstance) and not others:
            os.close(child.network)
        for kept in child.kept:
            kept.close()
        child.kept.clear()
        file = runner.health_file(child)
        for path in (file, f"{file}.new"):
            _quietly(os.unlink, path)
        _quietly(os.rmdir, os.path.dirname(file))
        still = any(
            (one.role, one.name) == (child.role, child.name) for one in runner.children if one is not child
        )
        if child.role is Role.VHOST and not runner.as_root and not still:
            _quietly(shutil.rmtree, runner.tmp_folder(child))

    # ---- doors ----

    def _make_doors(self, child: Instance) -> None:
        """Give `child` a door to each whom it meets, and those its far ends."""
        for directory in ROLES[child.role].connects:
            binder = next(one for one in self._runner.children if directory in ROLES[one.role].binds)
            theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            child.kept += [theirs, ours]
            binder.doors.append(Door(directory, child.role.value, child.name, theirs.fileno()))
            child.doors.append(Door(directory, binder.role.value, binder.name, ours.fileno()))
            office.say(self._links[binder.role][0], _word(office.DOOR, binder.doors[-1]), theirs.fileno())

    def _take_doors_away(self, child: Instance) -> None:
        """Nobody comes through the doors any more that were made for `child` after the start."""
        numbers = {kept.fileno() for kept in child.kept}
        for binder in self._runner.children if numbers else ():
            for door in [door for door in binder.doors if door.fd in numbers and binder is not child]:
                binder.doors.remove(door)
                office.say(self._links[binder.role][0], _word(office.NO_DOOR, door))


def _word(word: bytes, door: Door) -> bytes:
    return word + f" {door.directory.value}:{door.role}:{door.name}".encode()


@dataclass(frozen=True, slots=True)
class _Reading:
    """The reader's desk: it only reads."""

    file: str
    config: Config

    def read(self) -> Outcome:
        return startup.read_again(self.file, self.config)


def _quietly(function: Callable[[str], object], path: str) -> None:
    try:
        function(path)
    except (OSError, RecursionError):
        pass
