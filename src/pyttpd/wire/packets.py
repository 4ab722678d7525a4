"""Packets: how frames travel in SOCK_SEQPACKET's records. Sans-I/O.

A packet holds one frame. On the channels that connections travel by (`PACKED`), from version `SEVERAL_SINCE` on, it
holds from one to MAX_FRAMES, one behind the other, together at most MAX_PACKET bytes: what a turn of a loop has for one
peer costs one system call on either side, and one wake-up. The descriptors of a packet belong to its frames that take
one, in their order; so there are never more than frames.

A packet is taken whole or not at all: one frame that isn't well-formed, one too many, a byte that belongs to none, or
descriptors that don't match, and nobody sees any of it. (What only its receiver can judge, that a message isn't its
sender's to say now or that a descriptor is of the wrong kind, is found out frame by frame: those before it count.)

In step with: PROTOCOL.md section 1, `pyttpd.channel`, `pyttpd.loop.RESERVE`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pyttpd.wire.errors import RemoteProtocolError
from pyttpd.wire.messages import BY_CLASS, MAX_FRAME, Message, decode, decode_from
from pyttpd.wire.permits import Kind

#: The first version in which a packet may hold several frames, and the channels on which it may.
SEVERAL_SINCE = 2
PACKED = frozenset({Kind.ROUTE, Kind.WORKER})
#: Frames in one packet: as many connections as a worker gets credit for (pyttpd_vhost.worker.CREDIT). With more the
#: system calls that remain would hardly be fewer, and each may bring a descriptor beyond the last free one of who reads
#: (`loop.RESERVE`). The kernel's own bound is 253 (SCM_MAX_FD).
MAX_FRAMES = 8
#: Bytes of one packet: eight offers with the longest names take little more than half of it.
MAX_PACKET = 4096


def holds_several(kind: Kind, version: int) -> bool:
    """Whether packets of this channel may hold several frames."""
    return version >= SEVERAL_SINCE and kind in PACKED


def pack(frames: Sequence[bytes], *, several: bool) -> Iterator[Sequence[bytes]]:
    """Divide `frames` into packets, in their order: what each yields is joined and sent as one."""
    if not several:
        for frame in frames:
            yield (frame,)
        return
    start = size = 0
    for at, frame in enumerate(frames):
        size += len(frame)
        if at - start == MAX_FRAMES or size > MAX_PACKET:
            yield frames[start:at]
            start, size = at, len(frame)
    if start < len(frames):
        yield frames[start:] if start else frames


def largest(*, several: bool) -> tuple[int, int]:
    """Return how many bytes and descriptors a packet may have."""
    return (MAX_PACKET, MAX_FRAMES) if several else (MAX_FRAME, 1)


def unpack(packet: bytes, version: int, *, several: bool) -> list[Message]:
    """Return the messages of a packet, which isn't empty. Raises RemoteProtocolError."""
    if not several:
        return [decode(packet, version)]
    messages = []
    at, size = 0, len(packet)
    while at < size:
        message, at = decode_from(packet, at, version)
        messages.append(message)
    if len(messages) > MAX_FRAMES:
        raise RemoteProtocolError("oversized", f"{len(messages)} frames in a packet")
    return messages


def match_descriptors(messages: Sequence[Message], count: int, *, cut: bool) -> None:
    """Look whether `count` descriptors are those that `messages` take. `cut`: some that came are lost, the last ones,
    since we had no free number for them; so there may be fewer. Raises RemoteProtocolError.
    """
    wanted = 0
    for message in messages:
        wanted += BY_CLASS[type(message)].descriptor is not None
    if count > wanted or (cut and count == wanted):
        raise RemoteProtocolError("descriptors", f"more than {wanted} in a packet")
    if count < wanted and not cut:
        raise RemoteProtocolError("descriptors", f"{count} instead of {wanted} in a packet")
