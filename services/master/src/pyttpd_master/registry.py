"""Who has which share: what was sent, what is in force, what is waited for.

Rules
  1. A peer gets its share when it comes, and again when that changes; nobody else is touched.
  2. umaster first, then listeners, then tenants: of these at most MAX_AT_A_TIME load their application anew at the same
     time, however many have changed.
  3. What was sent is waited for until the peer says that it is in force, or why it can't be. A tenant's ShareOk
     comes from its new supervisor. Who has said nothing after PATIENCE makes room for the next, and goes on being
     waited for.
  4. Who isn't there may only be on its way: after master has been replaced everybody comes anew. So it is waited for,
     COMES_WITHIN, before it is said that it is away.
  5. Who was asked for a successor doesn't speak for that: only who comes after it does.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from pyttpd import memfd
from pyttpd.channel import Channel
from pyttpd.config.model import Config
from pyttpd.config.share_versions import Withheld, as_of, share_of
from pyttpd.service import Service
from pyttpd.wire.errors import RemoteProtocolError
from pyttpd.wire.messages import Hello, Message, Renew, Share, ShareFailed, ShareOk

#: A peer: its role and name.
Key = tuple[str, str]
UMASTER: Key = ("umaster", "umaster")
#: Tenants that load their application at the same time, because their shares have changed: each takes a core for that.
MAX_AT_A_TIME = 8
#: Who hasn't said after so long (s) how it stands no longer keeps others waiting. A keeper gives a successor 60 s.
PATIENCE = 75.0
SWEEP_INTERVAL = 1.0
#: Links try again after three seconds at the latest (rendezvous.py), and a keeper has started its role again by then.
COMES_WITHIN = 10.0
#: Said of who can't be told.
AWAY = "is not there"


@dataclass(slots=True, eq=False)
class Peer:
    """A channel's peer. `sent` are the generations of shares that it may still speak about, and how many parts
    each has.
    """

    key: Key
    channel: Channel
    sent: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Watch:
    """Somebody waits for `keys` to be settled. told(key, problem) is called for each; problem is "" if all is well."""

    keys: set[Key]
    told: Callable[[Key, str], None]


class Registry:
    """See the module's text."""

    def __init__(self, service: Service, config: Config) -> None:
        self._service = service
        self.config = config
        self.peers: dict[Key, set[Peer]] = {}
        self.shares_sent: dict[str, int] = {}
        self.in_force: dict[Key, int] = {}
        self.failures: dict[Key, str] = {}
        #: Since when (monotonic) each is waited for that hasn't said that its share is in force.
        self.waiting: dict[Key, float] = {}
        self._queue: deque[tuple[Key, bool]] = deque()
        #: Until when we wait for a tenant that loads its application, and for everybody else.
        self._active: dict[Key, float] = {}
        self._expected: dict[Key, float] = {}
        #: Who isn't there, and whether it is to be asked for a successor when it comes.
        self._awaited: dict[Key, bool] = {}
        #: Who has been asked for a successor.
        self._asked: dict[Key, set[Peer]] = {}
        self._watches: list[Watch] = []
        service.loop.call_later(SWEEP_INTERVAL, self._sweep)

    # ---- peers ----

    def add(self, channel: Channel, hello: Hello) -> None:
        """Take over an open channel, and send what is its peer's."""
        peer = Peer((hello.role, hello.name), channel)
        channel.owner = peer
        channel.on_message = self._from_peer
        channel.on_close = self._gone
        self.peers.setdefault(peer.key, set()).add(peer)
        self._send(peer)
        renew = self._awaited.pop(peer.key, None)
        if renew is not None:
            self._expected[peer.key] = self._service.loop.now + PATIENCE
            if renew:
                self._ask(peer)

    def _ask(self, peer: Peer) -> None:
        """Ask `peer` for a successor."""
        self._asked.setdefault(peer.key, set()).add(peer)
        if not peer.channel.closed:
            peer.channel.send(Renew())

    def channels(self) -> list[Channel]:
        return [peer.channel for peers in self.peers.values() for peer in peers]

    def _gone(self, channel: Channel, _reason: str) -> None:
        peer = channel.owner
        assert isinstance(peer, Peer)
        self.peers[peer.key].discard(peer)
        if not self.peers[peer.key]:
            del self.peers[peer.key]
        self._asked.get(peer.key, set()).discard(peer)

    def _shares(self, key: Key) -> list[tuple[str, bytes]]:
        role, name = key
        config = self.config
        match role:
            case "umaster":
                return [
                    ("share", config.share_for_umaster().to_json()),
                    ("map", config.host_map().to_json()),
                ]
            case "listener":
                return [("share", config.share_for_listener(name).to_json())]
            case _:
                return [("share", config.share_for_vhost(name).to_json())]

    def _send(self, peer: Peer) -> None:
        try:
            shares = self._shares(peer.key)
        except KeyError:
            return  # it is no longer configured, and is about to be told so
        generation = self.config.generation
        for part, newest in shares:
            try:
                data = as_of(share_of(peer.key[0], part), newest, peer.channel.version)
            except Withheld as reason:
                name = f"{peer.key[0]} {peer.key[1]}"
                self._service.log.warning(
                    "a role of an older release gets no share", peer=name, reason=reason
                )
                self.failures[peer.key] = str(reason)
                self._settle(peer.key, str(reason))
                return
            fd = memfd.make(f"pyttpd-{part}", data)
            try:
                # A new channel has room for two frames. One that has none now is asked again when it has.
                if peer.channel.send(Share(generation, part, len(data), memfd.digest_of(data)), fd):
                    role = peer.key[0]
                    self.shares_sent[role] = self.shares_sent.get(role, 0) + 1
                    peer.sent[generation] = peer.sent.get(generation, 0) + 1
                elif not peer.channel.closed:
                    # It doesn't read: it comes again, and finds everything new.
                    peer.channel.fault("does-not-read", "no room for a share")
                    return
            finally:
                os.close(fd)

    def _from_peer(self, channel: Channel, message: Message, _: int | None) -> None:
        peer = channel.owner
        assert isinstance(peer, Peer)
        match message:
            case ShareOk(generation) | ShareFailed(generation, _) if generation not in peer.sent:
                raise RemoteProtocolError("bad-field", f"generation {generation} was never sent")
            case ShareOk(generation):
                for older in [each for each in peer.sent if each < generation]:
                    del peer.sent[older]
                peer.sent[generation] -= 1
                if peer.sent[generation] > 0:
                    return  # another part is to come
                peer.sent[generation] = 1 if peer.key[0] != "umaster" else 2
                if generation == self.config.generation and peer not in self._asked.get(peer.key, ()):
                    self.in_force[peer.key] = generation
                    self.failures.pop(peer.key, None)
                    self._settle(peer.key, "")
            case ShareFailed(generation, reason):
                if generation == self.config.generation and peer not in self._asked.get(peer.key, ()):
                    self.failures[peer.key] = reason
                    self._settle(peer.key, reason)

    # ---- changes ----

    def put_in_force(self, config: Config, changed: list[Key], held_back: dict[Key, str]) -> None:
        """Have `changed` peers get their shares of `config`, one after the other.

        `held_back`: whose processes have to be made anew first, and who makes them; the old ones keep what they have.
        """
        self.config = config
        now = self._service.loop.now
        alive = {UMASTER, *(("listener", each.name) for each in config.listeners)}
        alive |= {("vhost", each.name) for each in config.vhosts}
        for table in (self.waiting, self.failures, self.in_force, self._awaited, self._asked):
            for key in [key for key in table if key not in alive]:
                del table[key]
        self._queue = deque((key, renew) for key, renew in self._queue if key in alive)
        for key in changed:
            if key in alive:
                self.failures.pop(key, None)
                self._asked.pop(key, None)
                self.waiting[key] = now
                if key in held_back:
                    self._expected[key] = now + PATIENCE
                else:
                    self._queue.append((key, False))
        self._pump()

    def renew(self, key: Key) -> None:
        """Have the tenant `key` make its processes anew."""
        self.failures.pop(key, None)
        self.waiting.setdefault(key, self._service.loop.now)
        self._queue.append((key, True))
        self._pump()

    def watch(self, keys: set[Key], told: Callable[[Key, str], None]) -> Watch:
        """Call told(key, problem) for each of `keys` when it is settled."""
        watch = Watch(set(keys), told)
        self._watches.append(watch)
        return watch

    def forget(self, watch: Watch) -> None:
        if watch in self._watches:
            self._watches.remove(watch)

    def _pump(self) -> None:
        while self._queue and len(self._active) < MAX_AT_A_TIME:
            key, renew = self._queue.popleft()
            if key not in self.waiting:
                continue  # it has come and taken it by itself meanwhile
            peers = list(self.peers.get(key, ()))
            if not peers:
                self._awaited[key] = renew or self._awaited.get(key, False)
                self._expected[key] = self._service.loop.now + COMES_WITHIN
                continue
            late = self._active if key[0] == "vhost" else self._expected
            late[key] = self._service.loop.now + PATIENCE
            for peer in peers:
                if renew:
                    self._ask(peer)
                else:
                    self._send(peer)

    def _settle(self, key: Key, problem: str) -> None:
        if not problem:
            self.waiting.pop(key, None)
        self._asked.pop(key, None)
        self._expected.pop(key, None)
        if self._active.pop(key, None) is not None and problem:
            self._service.log.warning(
                "the new share is not in force: what serves stays", peer=f"{key[0]} {key[1]}", reason=problem
            )
        self._tell(key, problem)
        self._pump()

    def _tell(self, key: Key, problem: str) -> None:
        for watch in list(self._watches):
            if key in watch.keys:
                watch.keys.discard(key)
                if not watch.keys:
                    self.forget(watch)
                watch.told(key, problem)

    def _sweep(self) -> None:
        now = self._service.loop.now
        for late in (self._active, self._expected):
            for key in [key for key, until in late.items() if now > until]:
                del late[key]
                away = self._awaited.pop(key, None) is not None
                self._tell(key, AWAY if away else f"has not said within {PATIENCE:g} s that it serves")
        self._pump()
        self._service.loop.call_later(SWEEP_INTERVAL, self._sweep)
