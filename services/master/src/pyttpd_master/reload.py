"""One reload after the other: read, validated, bound, put in force; or nothing of it.

    IDLE ── asked ──> READING ── errors, nothing new, or only a plan ──────────────────────> IDLE
                         ├── valid, init is away ──> AWAITING ── it doesn't come ──────────> IDLE
                         │                             │  ^ it dies meanwhile
                         └── valid, init is there ──> BINDING ── init can't, or is silent ─> IDLE
                                                       └── Prepared ──> in force: told to keeper, peers, init ──> IDLE
    IDLE ── init holds another configuration than we ──> AGREEING ── it has read ours, or can't ──> IDLE

Rules
  1. Nothing changes before everything has been read, found valid and bound. From then on nothing can fail but single
     peers, each of which keeps what it has and is told of.
  2. The order of what is put in force: our keeper (whoever serves after us serves by it), umaster's share and map,
     listeners, tenants a few at a time; init then hands out what is new and closes what is gone. What has lost its
     table ends (`retire`) when umaster sends nobody there any more.
  3. master dies before that: nothing has changed, init closes what it had bound (its link is gone). It dies in the
     middle: our keeper has it, our successor sends everybody what it hasn't yet, and agrees with init anew.
  4. One at a time. SIGHUP during one is remembered, a command is refused. That peers still load their applications for
     the last one keeps nobody from the next.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from pyttpd.channel import Channel
from pyttpd.config.changes import Plan, lines
from pyttpd.config.model import Config
from pyttpd.loop import Timer
from pyttpd.office import Outcome
from pyttpd.service import Service
from pyttpd.wire.messages import Abort, Commit, Holds, Message, Prepare, Prepared, Unprepared

from pyttpd_master.registry import AWAY, COMES_WITHIN, UMASTER, Key, Registry

#: init reads the configuration as long as we do, and binds in no time.
INIT_TIMEOUT = 130.0
#: umaster puts ten thousand tenants in force in less than this (s); then what has lost its table ends without its word.
RETIRE_AFTER = 10.0
#: Lines of errors and of a plan that go into the log; the operator gets all.
MAX_LOGGED = 20
#: Of so many parts each is told to the operator; of more only how many.
MAX_TOLD = 50


class Phase(enum.Enum):
    """What is going on."""

    IDLE = "idle"
    READING = "reading"
    AWAITING = "waiting for init"
    BINDING = "binding"
    AGREEING = "agreeing"


class Teller:
    """Who has asked, and hears how it goes on. Made for SIGHUP, where only the log hears it."""

    def say(self, line: str) -> None:
        """Tell how it goes on."""

    def end(self, lines: list[str], *, well: bool) -> None:
        """Tell what came of it."""


class Reload:
    """See the module's text. in_force(config) is called when another configuration is."""

    def __init__(
        self, service: Service, registry: Registry, config: Config, in_force: Callable[[Config], None]
    ) -> None:
        self._service = service
        self._registry = registry
        self._config = config
        self._in_force = in_force
        self._phase = Phase.IDLE
        self._since = self._begun = 0.0
        self._teller = Teller()
        self._dry = False
        self._again = False
        self._outcome = Outcome()
        self._timer: Timer | None = None
        self._init: Channel | None = None
        #: Digest that init refused to read, so that it isn't asked again and again.
        self._disagreed = b""
        self.counts = {"done": 0, "failed": 0}

    @property
    def plain(self) -> bool:
        """Whether a runner makes processes for us; in containers an engine does."""
        return self._service.options.runner >= 0

    # ---- asked ----

    def on_hup(self) -> None:
        if self._phase is Phase.IDLE:
            self._service.log.info("SIGHUP: the configuration is read again")
            self.start(Teller(), dry=False)
        else:
            self._again = True

    def start(self, teller: Teller, *, dry: bool) -> None:
        """Begin a reload, or only find out what it would change."""
        counter = self._service.counter
        if self._phase is not Phase.IDLE or counter is None:
            seconds = self._service.loop.now - self._since
            teller.end(
                [f"another reload is under way ({self._phase.value}, for {seconds:.0f} s): try again"],
                well=False,
            )
            return
        self._enter(Phase.READING)
        self._begun = self._since
        self._teller, self._dry = teller, dry
        teller.say("reading the configuration")
        counter.prepare(self._on_outcome)

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        self._since = self._service.loop.now
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_outcome(self, outcome: Outcome) -> None:
        assert self._phase is Phase.READING
        config, plan = outcome.config, outcome.plan
        if outcome.errors or config is None or plan is None:
            more = outcome.count - len(outcome.errors)
            errors = [*outcome.errors, *([f"... and {more} more"] if more > 0 else [])]
            self._fail(errors or ["the configuration could not be read"], "nothing has changed")
        elif self._dry:
            self._drop()
            self._end(lines(plan, plain=self.plain), well=True)
        elif config.digest == self._config.digest:
            self._drop()
            self._end([f"nothing has changed: generation {self._config.generation} is in force"], well=True)
        else:
            self._outcome = outcome
            if self._init is None:
                self._await_init()
            else:
                self._ask(self._init)

    # ---- init ----

    def _await_init(self) -> None:
        """One that has died has a successor in a moment."""
        self._enter(Phase.AWAITING)
        self._teller.say("init is away, which binds what is new: it is waited for")
        self._timer = self._service.loop.call_later(COMES_WITHIN, self._init_away)

    def _init_away(self) -> None:
        self._fail(["init is away, which binds what is new"], "nothing has changed; try again")

    def _ask(self, init: Channel) -> None:
        self._enter(Phase.BINDING)
        self._teller.say("init reads it, too, and binds what is new")
        self._timer = self._service.loop.call_later(INIT_TIMEOUT, self._init_silent)
        init.send(Prepare(bytes.fromhex(self._digest)))

    def on_init(self, channel: Channel, message: Message) -> None:
        """Init has said something to us."""
        match message:
            case Holds(digest):
                self._init = channel
                if self._phase is Phase.IDLE:
                    self._agree(digest)
                elif self._phase is Phase.AWAITING:
                    self._ask(channel)
            case Prepared(digest) if self._phase is Phase.BINDING and digest.hex() == self._digest:
                self._commit()
            case Prepared(digest) if self._phase is Phase.AGREEING and digest.hex() == self._config.digest:
                self._enter(Phase.IDLE)
                channel.send(Commit(digest))
                self._next()
            case Unprepared(reason) if self._phase is Phase.BINDING:
                self._fail([f"init: {reason}"], "nothing has changed")
            case Unprepared(reason) if self._phase is Phase.AGREEING:
                self._service.log.warning(
                    "init holds another configuration than is in force: reload", reason=reason
                )
                self._disagreed = bytes.fromhex(self._config.digest)
                self._enter(Phase.IDLE)
                self._next()
            case Prepared():
                channel.send(Abort())  # of what we have given up

    def init_lost(self, _: str) -> None:
        self._init = None
        if self._phase is Phase.BINDING:
            # Not for ever: one that dies of what it is to bind would be asked again and again.
            if self._service.loop.now - self._begun < COMES_WITHIN:
                self._await_init()
            else:
                self._init_away()
        elif self._phase is Phase.AGREEING:
            self._enter(Phase.IDLE)  # the next one says what it holds
            self._next()

    def _init_silent(self) -> None:
        if self._init is not None:
            self._init.send(Abort())
        self._fail([f"init has not answered within {INIT_TIMEOUT:g} s"], "nothing has changed")

    def _agree(self, digest: bytes) -> None:
        """Init has read files that have been changed since we did, or before: it is to have what is in force."""
        ours = bytes.fromhex(self._config.digest)
        if digest != ours and ours != self._disagreed and self._init is not None:
            self._enter(Phase.AGREEING)
            self._timer = self._service.loop.call_later(INIT_TIMEOUT, lambda: self.init_lost("silent"))
            self._init.send(Prepare(ours))

    @property
    def _digest(self) -> str:
        return self._outcome.digest

    # ---- in force ----

    def _commit(self) -> None:
        counter, config, plan = self._service.counter, self._outcome.config, self._outcome.plan
        assert counter is not None
        assert config is not None
        assert plan is not None
        counter.adopt()
        old, self._config = self._config, config
        self._in_force(config)
        for line in self._shortened(lines(plan, plain=self.plain)):
            self._service.log.info("reload", change=line)
        self._service.log.info(
            "configuration in force",
            generation=config.generation,
            digest=config.digest[:16],
            before=old.generation,
        )
        held_back = self._held_back(plan)
        changed = self._changed(plan)
        Progress(
            self._service, self._registry, self._teller, changed, held_back, config, plan, plain=self.plain
        )
        self._registry.put_in_force(config, changed, held_back)
        if self._init is not None:
            self._init.send(Commit(bytes.fromhex(config.digest)))
        self._retire_when_routed(changed)
        self.counts["done"] += 1
        self._teller = Teller()
        self._outcome = Outcome()
        self._enter(Phase.IDLE)
        self._next()

    def _retire_when_routed(self, changed: list[Key]) -> None:
        """Have what isn't named any more end, as soon as umaster sends nobody there."""
        counter = self._service.counter
        assert counter is not None
        done = False

        def retire() -> None:
            nonlocal done
            if not done:
                done = True
                counter.retire()

        if UMASTER in changed and UMASTER in self._registry.waiting:
            self._registry.watch({UMASTER}, lambda _key, _problem: retire())
            self._service.loop.call_later(RETIRE_AFTER, retire)
        else:
            retire()

    def _changed(self, plan: Plan) -> list[Key]:
        found = [UMASTER] if plan.umaster else []
        found += [("listener", name) for name in plan.listeners]
        return found + [("vhost", name) for name in plan.vhosts]

    def _held_back(self, plan: Plan) -> dict[Key, str]:
        """Return those whose processes get nothing new, since others, with another uid, say, take their place."""
        words = {"process", "container", *(("view",) if self.plain else ())}
        kinds = {"vhost": "vhost", "listen": "listener"}
        return {
            (kinds[change.what], change.name): "its processes are made anew"
            if self.plain
            else "waits for its container"
            for change in plan.changes
            if change.what in kinds and change.sign != "-" and words & set(change.takes)
        }

    # ---- the end ----

    def _drop(self) -> None:
        assert self._service.counter is not None
        self._service.counter.drop()

    def _fail(self, errors: list[str], conclusion: str) -> None:
        if not self._dry:  # who only wants to know hears it, and nobody else need
            for error in self._shortened(errors):
                self._service.log.error("reload refused", error=error)
            self.counts["failed"] += 1
        self._drop()
        self._end([*errors, conclusion], well=False)

    @staticmethod
    def _shortened(text: list[str]) -> list[str]:
        return (
            text
            if len(text) <= MAX_LOGGED
            else [*text[:MAX_LOGGED], f"... and {len(text) - MAX_LOGGED} more"]
        )

    def _end(self, text: list[str], *, well: bool) -> None:
        teller, self._teller = self._teller, Teller()
        self._outcome = Outcome()
        self._enter(Phase.IDLE)
        teller.end(text, well=well)
        self._next()

    def _next(self) -> None:
        if self._again and self._phase is Phase.IDLE:
            self._again = False
            self._service.loop.call_later(0.0, self.on_hup)


class Progress:
    """Tells who has asked how a configuration that is in force gets to its peers, and what came of it."""

    def __init__(
        self,
        service: Service,
        registry: Registry,
        teller: Teller,
        changed: list[Key],
        held_back: dict[Key, str],
        config: Config,
        plan: Plan,
        *,
        plain: bool,
    ) -> None:
        self._service = service
        self._teller = teller
        self._began = service.loop.now
        self._generation = config.generation
        self._plain = plain
        names = {("vhost", each.name) for each in config.vhosts}
        names |= {("listener", each.name) for each in config.listeners} | {UMASTER}
        # What an operator has to bring up first can't be waited for here.
        self._later = {} if plain else held_back
        self._open = {key for key in changed if key in names and key not in self._later}
        self._new = {("vhost", change.name) for change in plan.changes if change.sign == "+"}
        self._problems: list[str] = []
        self._away: list[str] = (
            [] if plain else [f"{key[0]} {key[1]}: {why}" for key, why in held_back.items()]
        )
        parts = "1 part has" if len(changed) == 1 else f"{len(changed)} parts have"
        teller.say(f"generation {config.generation} is in force: {parts} something new")
        self._plan = plan
        self._said = 0
        if self._open:
            registry.watch(self._open, self._told)
        else:
            service.loop.call_later(0.0, self._finish)

    def _told(self, key: Key, problem: str) -> None:
        name = f"{key[0]} {key[1]}" if key != UMASTER else "umaster"
        self._open.discard(key)
        if problem == AWAY:
            self._away.append(f"{name} {AWAY}")
        elif problem:
            then = "it is tried again" if key in self._new else "what served before goes on"
            self._problems.append(f"{name}: {problem}; {then}")
        self._said += 1
        # Thousands may be away at once: more than there is room for on the operator's channel.
        if self._said <= MAX_TOLD or self._said % (10 * MAX_TOLD) == 0 or (problem and problem != AWAY):
            self._teller.say(
                f"{name}: {problem or 'in force'}{f' ({len(self._open)} to go)' if self._open else ''}"
            )
        if not self._open:
            self._finish()

    def _finish(self) -> None:
        seconds = self._service.loop.now - self._began
        away = self._away[:MAX_TOLD]
        if len(self._away) > MAX_TOLD:
            away.append(f"... and {len(self._away) - MAX_TOLD} more are not there")
        text = [*lines(self._plan, plain=self._plain), *away, *self._problems]
        text.append(f"generation {self._generation} is in force ({seconds:.1f} s)")
        # A container may be down because somebody wants it; what the runner starts has to be there.
        self._teller.end(text, well=not self._problems and not (self._plain and self._away))
