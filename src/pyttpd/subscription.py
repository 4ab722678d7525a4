"""A role's share of the configuration as it comes from master, again and again.

Rules
  1. A share is put into force by the role, or refused (ValueError): then the channel is closed, and the old one stays.
  2. ShareOk says that it *is* in force, and not that it has come: master tells the operator so. Who needs a while (a
     tenant has to load its application, umaster to read 100,000 names) says so later, by `in_force`.
  3. ShareFailed says that it can't be for now, and why. The share isn't refused by that: ShareOk may follow.
  4. The same share again, from a new master or after another link, is not taken twice; how it stands is said again.

In step with: wire/permits.py (the channel `master`), PROTOCOL.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from pyttpd import memfd
from pyttpd.channel import Channel
from pyttpd.config.share_versions import share_of, up_to_date
from pyttpd.wire.errors import RemoteProtocolError
from pyttpd.wire.messages import Message, Renew, Share, ShareFailed, ShareOk

#: Takes a part and its bytes; returns whether it is in force. Raises ValueError for one that can't be used.
OnShare = Callable[[str, bytes], bool]


@dataclass(slots=True)
class _Part:
    """What has come of one part, and how it stands: no answer yet, ShareOk, or ShareFailed with a reason."""

    generation: int
    digest: bytes
    answered: bool = False
    failure: str = ""


class Subscription:
    """See the module's text. `on_renew` is called when master asks for a successor (a tenant's application anew)."""

    def __init__(self, role: str, on_share: OnShare, on_renew: Callable[[], None] | None = None) -> None:
        self._role = role
        self._on_share = on_share
        self._on_renew = on_renew
        self._parts: dict[str, _Part] = {}
        self._channel: Channel | None = None

    def on_message(self, channel: Channel, message: Message, fd: int | None) -> None:
        match message:
            case Share(generation, part, size, digest):
                assert fd is not None
                try:
                    data = memfd.read(fd, size, digest)
                finally:
                    os.close(fd)
                self._channel = channel
                self._take(channel, generation, part, digest, data)
            case Renew():
                if self._on_renew is None:
                    raise RemoteProtocolError("not-permitted", "no tenant that could be renewed")
                self._on_renew()

    def _take(self, channel: Channel, generation: int, part: str, digest: bytes, data: bytes) -> None:
        known = self._parts.get(part)
        if known is not None and known.digest == digest:
            known.generation = generation
            self._answer(known)
            return
        new = _Part(generation, digest)
        before = self._parts.get(part)
        self._parts[part] = new
        try:
            data = up_to_date(share_of(self._role, part), data, channel.version)
            new.answered = self._on_share(part, data)
        except ValueError as error:
            if before is None:
                del self._parts[part]
            else:
                self._parts[part] = before
            raise RemoteProtocolError("bad-share", str(error)) from None
        self._answer(new)

    def in_force(self, part: str = "share") -> None:
        """The part that came last is in force; may be said again."""
        found = self._parts.get(part)
        if found is not None and (not found.answered or found.failure):
            found.answered, found.failure = True, ""
            self._answer(found)

    def failed(self, reason: str, part: str = "share") -> None:
        """It can't be put into force for now."""
        found = self._parts.get(part)
        if found is not None and found.failure != reason:
            found.answered, found.failure = True, reason
            self._answer(found)

    def refuse(self, reason: str) -> None:
        """What came last turns out not to be of use: as if on_share had raised ValueError."""
        channel = self._channel
        if channel is not None and not channel.closed:
            channel.fault("bad-share", reason)

    def _answer(self, part: _Part) -> None:
        channel = self._channel
        if part.answered and channel is not None and not channel.closed:
            if part.failure:
                channel.send(ShareFailed(part.generation, part.failure))
            else:
                channel.send(ShareOk(part.generation))
