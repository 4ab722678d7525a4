"""Shares as a role takes them: once, refused, told of late, or not at all."""

from __future__ import annotations

import os
from typing import Any

import pytest

from pyttpd import memfd
from pyttpd.subscription import Subscription
from pyttpd.wire.errors import RemoteProtocolError
from pyttpd.wire.messages import VERSION, Message, Renew, Share, ShareFailed, ShareOk


class Line:
    """A channel to master, as far as a subscription needs one."""

    def __init__(self) -> None:
        self.closed = False
        self.version = VERSION
        self.said: list[Message] = []

    def send(self, message: Message) -> bool:
        self.said.append(message)
        return True


class Role:
    def __init__(self, **options: Any) -> None:
        self.line = Line()
        self.taken: list[bytes] = []
        self.at_once = True
        self.subscription = Subscription("vhost", self._on_share, **options)

    def _on_share(self, _: str, data: bytes) -> bool:
        if data == b"bad":
            raise ValueError("bad")
        self.taken.append(data)
        return self.at_once

    def give(self, data: bytes, generation: int = 1) -> None:
        fd = memfd.make("test", data)
        before = set(os.listdir("/proc/self/fd"))
        share = Share(generation, "share", len(data), memfd.digest_of(data))
        try:
            self.subscription.on_message(self.line, share, fd)  # type: ignore[arg-type]
        finally:
            assert str(fd) in before
            assert not os.path.exists(f"/proc/self/fd/{fd}")

    @property
    def said(self) -> list[Message]:
        said, self.line.said = self.line.said, []
        return said


def test_a_share_is_taken_once_and_answered_each_time() -> None:
    role = Role()
    role.give(b"one")
    role.give(b"one", 2)
    assert role.taken == [b"one"]
    assert role.said == [ShareOk(1), ShareOk(2)]


def test_one_that_takes_a_while_is_answered_when_it_is_in_force() -> None:
    role = Role()
    role.at_once = False
    role.give(b"one")
    assert role.said == []
    role.subscription.failed("no such module")
    role.subscription.failed("no such module")
    role.give(b"one", 2)  # from a new master, which hears the same
    assert role.said == [ShareFailed(1, "no such module"), ShareFailed(2, "no such module")]
    role.subscription.in_force()
    role.subscription.in_force()
    assert role.said == [ShareOk(2)]
    role.give(b"two", 3)
    assert role.said == []
    role.subscription.in_force("map")  # which never came
    role.line.closed = True
    role.subscription.in_force()
    assert role.said == []
    role.line.closed = False
    role.give(b"two", 3)
    assert role.said == [ShareOk(3)]


def test_a_share_that_can_not_be_used_leaves_the_old_one() -> None:
    role = Role()
    for data in (b"bad", b"one", b"bad"):
        if data == b"bad":
            with pytest.raises(RemoteProtocolError) as caught:
                role.give(data)
            assert caught.value.reason == "bad-share"
        else:
            role.give(data)
    role.give(b"one", 2)
    assert role.taken == [b"one"]
    assert role.said == [ShareOk(1), ShareOk(2)]


def test_who_has_nothing_to_renew_is_not_asked_to() -> None:
    asked: list[int] = []
    role = Role(on_renew=lambda: asked.append(1))
    role.subscription.on_message(role.line, Renew(), None)  # type: ignore[arg-type]
    assert asked == [1]
    with pytest.raises(RemoteProtocolError):
        Role().subscription.on_message(role.line, Renew(), None)  # type: ignore[arg-type]
