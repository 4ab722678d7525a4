"""The third lock: init's network namespace lets nothing out that was not asked for from outside (nftables).

Theory of operation. A connection that is handed from process to process still belongs to this namespace, and
could be turned round and used to call out. Every packet that would *open* something is dropped on its way out; answers
to those who came in are not. What opens a connection is TCP's first segment, SYN without ACK, and no other; what a
process sends that isn't TCP opens something always. What nobody's process sends (the kernel's own: answers to a ping,
"unreachable", neighbour discovery) goes out. Two forms:

- the namespace holder's: the namespace is ours alone, the rules are for everybody in it;
- plain mode as root: the namespace is the machine's, the rules are for sockets that were made by our uids. A
  socket's maker is what counts (`meta skuid`), not who holds it: a connection belongs to the listener that
  accepted it, and so that a listening socket belongs to its listener as well, init makes it under that uid
  (`socket_made_by`).

Exceptions are addresses that somebody wrote down (`allow` in the configuration): TCP to exactly that address and port
is let through before anything is dropped. In plain mode an exception is one uid's, that of the tenant it was written
for; a connection that was handed over counts as its listener's there, so whoever turns it round has no exception. A
holder's exceptions are everybody's in its namespace; init's holder has none.

Nothing is remembered of a connection (no conntrack, whose state "new" would mean the same). Each packet of every
connection would pay for it, a twelfth of what a small request costs; and it remembers closed ones for two minutes, so
some 2,000 new ones a second fill its table, the machine's, after which it drops who comes.

We speak nfnetlink ourselves: a few messages in one transaction that stands or falls as a whole, no `nft`
program, and nothing that would start an event loop in a process that sleeps for the rest of its life. What
was set is read back.

In step with it: DESIGN section 6, SECURITY.md. `nft list ruleset` prints what is set.
Source: linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h, netlink(7).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pyttpd.address import Address

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TABLE: Final = "pyttpd"
CHAIN: Final = "output"
SET: Final = "uids"
#: The exceptions, one set for each address family.
ALLOWED_SETS: Final = {socket.AF_INET: "allowed4", socket.AF_INET6: "allowed6"}

# --- netlink ------------------------------------------------------------------------------------------------
_NETLINK_NETFILTER: Final = 12
_NLM_F_REQUEST: Final = 0x1
_NLM_F_ACK: Final = 0x4
_NLM_F_EXCL: Final = 0x200
_NLM_F_CREATE: Final = 0x400
_NLM_F_APPEND: Final = 0x800
_NLM_F_DUMP: Final = 0x300
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_NLA_F_NESTED: Final = 0x8000
_NLA_TYPE: Final = 0x3FFF
#: What the kernel sends in one datagram of a dump, at most (32 KiB), and room.
_RECEIVE_BYTES: Final = 65_536
#: The kernel answers at once; a second without an answer is a fault.
_TIMEOUT: Final = 5.0

# --- nfnetlink and nf_tables: each message is a number of this subsystem ------------------------------------
_BATCH_BEGIN: Final = 0x10
_BATCH_END: Final = 0x11
_SUBSYS: Final = 10
_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN, _GETCHAIN = (_SUBSYS << 8 | n for n in (0, 1, 2, 3, 4))
_NEWRULE, _GETRULE, _NEWSET, _NEWSETELEM, _GETSETELEM = (_SUBSYS << 8 | n for n in (6, 7, 9, 12, 13))
_FAMILY_INET: Final = 1
_HOOK_OUTPUT: Final = 3
_PRIORITY_FILTER: Final = 0
_POLICY_ACCEPT: Final = 1
_VERDICT_DROP: Final = 0
_VERDICT_ACCEPT: Final = 1
_REGISTER_VERDICT: Final = 0
_REGISTER: Final = 1
#: The same space as 4-byte registers, for keys of several parts: each part begins a new one.
_FIRST_REGISTER32: Final = 8
_REGISTERS32_A_REGISTER: Final = 4
_META_SKUID: Final = 10
_META_NFPROTO: Final = 15
_META_L4PROTO: Final = 16
_PAYLOAD_NETWORK: Final = 1
_PAYLOAD_TRANSPORT: Final = 2
#: NFPROTO_IPV4 and NFPROTO_IPV6; where the destination's address lies in a packet, and how long it is.
_NFPROTO: Final = {socket.AF_INET: 2, socket.AF_INET6: 10}
_DESTINATION: Final = {socket.AF_INET: (16, 4), socket.AF_INET6: (24, 16)}
_DESTINATION_PORT: Final = (2, 2)
#: Where a TCP header has its flags (RFC 9293 section 3.1), and two of them.
_TCP_FLAGS: Final = (13, 1)
_SYN, _ACK = 0x02, 0x10
_CMP_EQ: Final = 0
_CMP_NEQ: Final = 1
_BYTEORDER_HTON: Final = 1
_SET_INTERVAL: Final = 4
_SET_ELEM_INTERVAL_END: Final = 1
#: nft's own number of the type "uid", and its note that the host's byte order is shown; both for `nft list`
#: only.
_TYPE_UID: Final = 24
#: Likewise "ipv4_addr", "ipv6_addr", "inet_service"; a key of several parts has six bits for each.
_TYPE_ADDRESS: Final = {socket.AF_INET: 7, socket.AF_INET6: 8}
_TYPE_PORT: Final = 13
_TYPE_BITS: Final = 6
_SET_NOTE: Final = struct.pack("<BBI", 0, 4, 1)

#: Interval elements of one message; the kernel takes attributes of at most 64 KiB, an element has under 40
#: bytes.
_ELEMENTS_A_MESSAGE: Final = 1000
_MAX_UID: Final = 2**32 - 2


class EgressError(Exception):
    """The rules can't be set, or don't stand as they were set."""


@dataclass(frozen=True, slots=True)
class UidRange:
    """The uids from first to last, both included; never 0: the machine's own programs are none of our
    business.
    """

    first: int
    last: int

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last <= _MAX_UID:
            raise ValueError(f"no range of uids above 0: {self.first} to {self.last}")


@dataclass(frozen=True, slots=True)
class Allowed:
    """An exception: TCP to `address`, of sockets that `uid` has made, or, None, of everybody in the namespace."""

    address: Address
    uid: int | None = None

    def key(self) -> bytes:
        """Return the element of its set: the parts as they lie in registers, each filled up to four bytes."""
        uid = b"" if self.uid is None else struct.pack("=I", self.uid)
        host = socket.inet_pton(self.address.family, self.address.host)
        return uid + host + struct.pack(">Hxx", self.address.port)


@dataclass(frozen=True, slots=True)
class Dropped:
    """What the rule has dropped since it was set."""

    packets: int
    bytes: int


def set_egress(
    uids: Iterable[UidRange] | None = None, *, allowed: Iterable[Allowed] = (), table: str = TABLE
) -> None:
    """Drop every outgoing new connection in this network namespace; with `uids`, only of sockets these made.

    allowed: the exceptions; each has a uid if there are `uids`, none otherwise (else ValueError).

    Replaces a table of that name in the same transaction, so there is no moment without it. Needs CAP_NET_ADMIN
    over the namespace. Raises EgressError; then nothing has changed.
    """
    ranges = None if uids is None else _merge(uids)
    if ranges is not None and not ranges:
        raise EgressError("no uids to hold back")
    keys = _keys(allowed, by_uid=ranges is not None)
    family_of = _attr(1, _text(table))
    messages = [
        # Made and deleted first: deleting one that is not there would fail the transaction.
        (_NEWTABLE, _NLM_F_CREATE, family_of),
        (_DELTABLE, 0, family_of),
        (_NEWTABLE, _NLM_F_CREATE | _NLM_F_EXCL, family_of),
        (_NEWCHAIN, _NLM_F_CREATE | _NLM_F_EXCL, _chain(table)),
    ]
    if ranges is not None:
        messages.append((_NEWSET, _NLM_F_CREATE | _NLM_F_EXCL, _set(table)))
        for start in range(0, len(ranges), _ELEMENTS_A_MESSAGE // 2):
            part = ranges[start : start + _ELEMENTS_A_MESSAGE // 2]
            messages.append((_NEWSETELEM, _NLM_F_CREATE, _set_elements(table, part)))
    for number, (family, elements) in enumerate(keys.items(), start=2):
        messages.append(
            (
                _NEWSET,
                _NLM_F_CREATE | _NLM_F_EXCL,
                _allowed_set(table, family, number, by_uid=ranges is not None),
            )
        )
        for start in range(0, len(elements), _ELEMENTS_A_MESSAGE):
            some = _allowed_elements(table, family, elements[start : start + _ELEMENTS_A_MESSAGE])
            messages.append((_NEWSETELEM, _NLM_F_CREATE, some))
    messages += [
        (_NEWRULE, _NLM_F_CREATE | _NLM_F_APPEND, _rule(table, expressions))
        for expressions in _rules(keys, by_uid=ranges is not None)
    ]
    _transact(messages, f"the egress rule can't be set (table inet {table})")


def verify_egress(*, by_uid: bool = False, allowed: Iterable[Allowed] = (), table: str = TABLE) -> Dropped:
    """Read the rules back from the kernel and compare them, and the exceptions, with what set_egress sends; return the
    counter of what was dropped.

    Raises EgressError, saying what is missing.
    """
    keys = _keys(allowed, by_uid=by_uid)
    standing: dict[socket.AddressFamily, list[bytes]] = {}
    with _netlink() as sock:
        chains = [dict(_attrs(body)) for body in _dump(sock, _GETCHAIN, b"")]
        rules = [dict(_attrs(body)) for body in _dump(sock, _GETRULE, _attr(1, _text(table)))]
        for family in keys:
            named = _attr(1, _text(table)) + _attr(2, _text(ALLOWED_SETS[family]))
            standing[family] = [
                key for body in _dump(sock, _GETSETELEM, named) for key in _read_elements(body)
            ]
    ours = [chain for chain in chains if chain[1] == _text(table) and chain[3] == _text(CHAIN)]
    if not ours:
        raise EgressError(f"there is no chain {CHAIN} in table inet {table}")
    hook = dict(_attrs(ours[0].get(4, b"")))
    if hook.get(1) != struct.pack(">I", _HOOK_OUTPUT):
        raise EgressError(f"the chain {CHAIN} of table inet {table} does not see outgoing packets")
    rules = [rule for rule in rules if rule[1] == _text(table) and rule[2] == _text(CHAIN)]
    if not rules:
        raise EgressError(f"there is no rule in table inet {table}")
    expected = _rules(keys, by_uid=by_uid)
    if len(rules) < len(expected):
        raise EgressError(f"a rule is missing in table inet {table}")
    # What somebody put behind ours does no harm: ours have decided by then.
    counted = [
        _compare(list(_read_expressions(rule[4])), ours_rule, table)
        for rule, ours_rule in zip(rules, expected, strict=False)
    ]
    for family, elements in keys.items():
        if sorted(standing[family]) != elements:
            raise EgressError(f"the set {ALLOWED_SETS[family]} of table inet {table} is not ours")
    dropped = counted[-len(_drops(by_uid=by_uid)) :]
    return Dropped(sum(each.packets for each in dropped), sum(each.bytes for each in dropped))


def _compare(standing: list[tuple[str, bytes]], expected: list[tuple[str, bytes]], table: str) -> Dropped:
    """Compare a rule with ours; return its counter. Raises EgressError."""
    if [name for name, _ in standing] != [name for name, _ in expected]:
        raise EgressError(f"the rule of table inet {table} is not ours: {[name for name, _ in standing]}")
    counted = Dropped(0, 0)
    for (name, data), (_, ours_data) in zip(standing, expected, strict=True):
        there = _values(data)
        if name == "counter":
            counted = Dropped(*(struct.unpack(">Q", there[(key,)])[0] for key in (2, 1)))
            continue
        # The kernel adds defaults and numbers of its own; what we asked for must be there as we asked for it.
        for key, value in _values(ours_data).items():
            if there.get(key) != value:
                raise EgressError(f"the rule of table inet {table} differs in its part {name!r}")
    return counted


def remove_egress(*, table: str = TABLE) -> None:
    """Delete the table; one that is not there is no error. Raises EgressError."""
    named = _attr(1, _text(table))
    messages = [(_NEWTABLE, _NLM_F_CREATE, named), (_DELTABLE, 0, named)]
    _transact(messages, f"table inet {table} can't be deleted")


def tables() -> list[str]:
    """Return the names of the namespace's tables of family inet. Raises EgressError."""
    with _netlink() as sock:
        return [dict(_attrs(body))[1].rstrip(b"\0").decode() for body in _dump(sock, _GETTABLE, b"")]


def socket_made_by(uid: int, family: int, kind: int) -> socket.socket:
    """Return a socket that counts as made by `uid` in the rule's eyes; the caller (root) owns it and stays
    root.
    """
    if os.geteuid() == uid:
        return socket.socket(family, kind | socket.SOCK_CLOEXEC)
    before = os.geteuid()
    os.seteuid(uid)
    try:
        return socket.socket(family, kind | socket.SOCK_CLOEXEC)
    finally:
        os.seteuid(before)


def _merge(uids: Iterable[UidRange]) -> list[UidRange]:
    """Return the same uids as ranges in order that neither overlap nor touch: the kernel refuses such."""
    merged: list[UidRange] = []
    for each in sorted(uids, key=lambda each: each.first):
        if merged and each.first <= merged[-1].last + 1:
            merged[-1] = UidRange(merged[-1].first, max(merged[-1].last, each.last))
        else:
            merged.append(each)
    return merged


def _keys(allowed: Iterable[Allowed], *, by_uid: bool) -> dict[socket.AddressFamily, list[bytes]]:
    """Return the elements of each set of exceptions that is needed, in order."""
    keys: dict[socket.AddressFamily, set[bytes]] = {}
    for each in allowed:
        if (each.uid is not None) != by_uid:
            raise ValueError("an exception has a uid where the rule has uids, and only there")
        keys.setdefault(each.address.family, set()).add(each.key())
    return {family: sorted(keys[family]) for family in sorted(keys)}


# --- the messages' bodies -----------------------------------------------------------------------------------
def _attr(kind: int, value: bytes) -> bytes:
    """Return struct nlattr with its value, filled up to four bytes."""
    return struct.pack("<HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _nested(kind: int, *inner: bytes) -> bytes:
    return _attr(kind | _NLA_F_NESTED, b"".join(inner))


def _text(value: str) -> bytes:
    return value.encode() + b"\0"


def _be32(kind: int, value: int) -> bytes:
    return _attr(kind, struct.pack(">I", value))


def _chain(table: str) -> bytes:
    hook = _nested(4, _be32(1, _HOOK_OUTPUT), _be32(2, _PRIORITY_FILTER))
    named = _attr(1, _text(table)) + _attr(3, _text(CHAIN))
    return named + hook + _be32(5, _POLICY_ACCEPT) + _attr(7, _text("filter"))


def _set(table: str) -> bytes:
    named = _attr(1, _text(table)) + _attr(2, _text(SET))
    key = _be32(4, _TYPE_UID) + _be32(5, 4)
    return named + _be32(3, _SET_INTERVAL) + key + _be32(10, 1) + _attr(13, _SET_NOTE)


def _set_elements(table: str, ranges: Iterable[UidRange]) -> bytes:
    """Intervals are pairs: where one begins, and where it has ended. In network byte order, in which they
    sort.
    """
    elements = []
    for each in ranges:
        elements.append(_nested(1, _nested(1, _be32(1, each.first))))
        elements.append(_nested(1, _nested(1, _be32(1, each.last + 1)), _be32(3, _SET_ELEM_INTERVAL_END)))
    return _attr(1, _text(table)) + _attr(2, _text(SET)) + _nested(3, *elements)


def _allowed_set(table: str, family: socket.AddressFamily, number: int, *, by_uid: bool) -> bytes:
    """A set of keys: [uid .] address . port; `number` tells the sets of one transaction apart."""
    parts = [(_TYPE_UID, 4)] if by_uid else []
    parts += [(_TYPE_ADDRESS[family], _DESTINATION[family][1]), (_TYPE_PORT, 4)]
    kind = 0
    for each, _ in parts:
        kind = kind << _TYPE_BITS | each
    named = _attr(1, _text(table)) + _attr(2, _text(ALLOWED_SETS[family]))
    key = _be32(4, kind) + _be32(5, sum(length for _, length in parts))
    return named + _be32(3, 0) + key + _be32(10, number)


def _allowed_elements(table: str, family: socket.AddressFamily, keys: Iterable[bytes]) -> bytes:
    elements = [_nested(1, _nested(1, _attr(1, key))) for key in keys]
    return _attr(1, _text(table)) + _attr(2, _text(ALLOWED_SETS[family])) + _nested(3, *elements)


def _rules(families: Iterable[socket.AddressFamily], *, by_uid: bool) -> list[list[tuple[str, bytes]]]:
    """Return all rules in order: what is let through, then what is dropped.

    The first one decides about nearly every packet; what comes to the last ones opens something, or is the kernel's.
    """
    exceptions = [_accept(family, by_uid=by_uid) for family in families]
    return [_accept_segments(), *exceptions, *_drops(by_uid=by_uid)]


def _accept_segments() -> list[tuple[str, bytes]]:
    """Return the rule of what belongs to a connection: meta l4proto tcp tcp flags & (syn | ack) != syn accept."""
    offset, length = _TCP_FLAGS
    where = _be32(2, _PAYLOAD_TRANSPORT) + _be32(3, offset) + _be32(4, length)
    mask = _nested(4, _attr(1, bytes([_SYN | _ACK]))) + _nested(5, _attr(1, bytes(1)))
    return [
        *_is(_META_L4PROTO, socket.IPPROTO_TCP),
        ("payload", _be32(1, _REGISTER) + where),
        ("bitwise", _be32(1, _REGISTER) + _be32(2, _REGISTER) + _be32(3, length) + mask),
        ("cmp", _be32(1, _REGISTER) + _be32(2, _CMP_NEQ) + _nested(3, _attr(1, bytes([_SYN])))),
        _verdict(_VERDICT_ACCEPT),
    ]


def _accept(family: socket.AddressFamily, *, by_uid: bool) -> list[tuple[str, bytes]]:
    """Return the rule of a family's exceptions: meta nfproto X meta l4proto tcp [meta skuid .] ip daddr . tcp dport
    @allowed counter accept.
    """
    words = 0  # of the key, so far
    key = []
    if by_uid:
        key.append(("meta", _be32(1, _register(words)) + _be32(2, _META_SKUID)))
        words += 1
    for base, (offset, length) in (
        (_PAYLOAD_NETWORK, _DESTINATION[family]),
        (_PAYLOAD_TRANSPORT, _DESTINATION_PORT),
    ):
        where = _be32(2, base) + _be32(3, offset) + _be32(4, length)
        key.append(("payload", _be32(1, _register(words)) + where))
        words += length // 4
    return [
        *_is(_META_NFPROTO, _NFPROTO[family]),
        *_is(_META_L4PROTO, socket.IPPROTO_TCP),
        *key,
        ("lookup", _attr(1, _text(ALLOWED_SETS[family])) + _be32(2, _REGISTER)),
        _COUNTER,
        _verdict(_VERDICT_ACCEPT),
    ]


def _register(word: int) -> int:
    """Return the register that the key's word of that number lies in, by the name that the kernel calls it back."""
    whole, part = divmod(word, _REGISTERS32_A_REGISTER)
    return _FIRST_REGISTER32 + word if part else _REGISTER + whole


def _is(meta: int, value: int) -> list[tuple[str, bytes]]:
    """Go on if this property of a packet, one byte, has that value."""
    load = _be32(1, _REGISTER) + _be32(2, meta)
    compare = _be32(1, _REGISTER) + _be32(2, _CMP_EQ) + _nested(3, _attr(1, bytes([value])))
    return [("meta", load), ("cmp", compare)]


_COUNTER: Final = ("counter", _attr(1, bytes(8)) + _attr(2, bytes(8)))


def _verdict(code: int) -> tuple[str, bytes]:
    return "immediate", _be32(1, _REGISTER_VERDICT) + _nested(2, _nested(2, _be32(1, code)))


_DROP: Final = (_COUNTER, _verdict(_VERDICT_DROP))


def _drops(*, by_uid: bool) -> list[list[tuple[str, bytes]]]:
    """Return the rules for the rest: meta skuid @uids counter drop; or meta l4proto tcp counter drop, and meta skuid !=
    4294967295 counter drop. That uid is nobody's: what a process has sent is dropped, whoever's it is.
    """
    load_uid = ("meta", _be32(1, _REGISTER) + _be32(2, _META_SKUID))
    if not by_uid:
        anybody = _be32(1, _REGISTER) + _be32(2, _CMP_NEQ) + _nested(3, _attr(1, b"\xff" * 4))
        return [
            [*_is(_META_L4PROTO, socket.IPPROTO_TCP), *_DROP],
            [load_uid, ("cmp", anybody), *_DROP],
        ]
    to_network = (
        _be32(1, _REGISTER) + _be32(2, _REGISTER) + _be32(3, _BYTEORDER_HTON) + _be32(4, 4) + _be32(5, 4)
    )
    look_up = _attr(1, _text(SET)) + _be32(2, _REGISTER)
    return [[load_uid, ("byteorder", to_network), ("lookup", look_up), *_DROP]]


def _rule(table: str, expressions: list[tuple[str, bytes]]) -> bytes:
    parts = [_nested(1, _attr(1, _text(name)), _nested(2, data)) for name, data in expressions]
    return _attr(1, _text(table)) + _attr(2, _text(CHAIN)) + _nested(4, *parts)


# --- reading ------------------------------------------------------------------------------------------------
def _attrs(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (type, value) of each attribute. Raises EgressError where a length is wrong."""
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("<HH", data, at)
        if length < 4 or at + length > len(data):
            raise EgressError("the kernel sent an attribute that is longer than its message")
        yield kind & _NLA_TYPE, data[at + 4 : at + length]
        at += (length + 3) & ~3


def _read_expressions(data: bytes) -> Iterator[tuple[str, bytes]]:
    for _, element in _attrs(data):
        fields = dict(_attrs(element))
        yield fields[1].rstrip(b"\0").decode(), fields.get(2, b"")


def _read_elements(data: bytes) -> Iterator[bytes]:
    """Yield the keys of a set's elements, as one message lists them."""
    for _, element in _attrs(dict(_attrs(data)).get(3, b"")):
        yield dict(_attrs(dict(_attrs(element))[1]))[1]


#: Attributes of the expressions we use that hold others: data values, and within an immediate the verdict.
_HOLDERS: Final = {"value": 1, "verdict": 2}


def _values(data: bytes, path: tuple[int, ...] = ()) -> dict[tuple[int, ...], bytes]:
    """Return an expression's plain attributes by their path. What can be read as attributes throughout,
    is.
    """
    values: dict[tuple[int, ...], bytes] = {}
    for kind, value in _attrs(data):
        where = (*path, kind)
        if len(value) >= 8 and _is_nested(value):
            values.update(_values(value, where))
        else:
            values[where] = value
    return values


def _is_nested(value: bytes) -> bool:
    length, kind = struct.unpack_from("<HH", value)
    return bool(length == len(value) and kind & _NLA_TYPE in _HOLDERS.values())


# --- the conversation ---------------------------------------------------------------------------------------
def _netlink() -> socket.socket:
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    except OSError as error:
        raise EgressError(f"the kernel offers no netfilter: {error}") from error
    sock.settimeout(_TIMEOUT)
    return sock


def _message(kind: int, flags: int, sequence: int, family: int, resource: int, body: bytes) -> bytes:
    """Return struct nlmsghdr, struct nfgenmsg (whose resource is in network byte order), body."""
    generic = struct.pack("<BB", family, 0) + struct.pack(">H", resource)
    return struct.pack("<IHHII", 20 + len(body), kind, flags | _NLM_F_REQUEST, sequence, 0) + generic + body


def _answers(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + 16 <= len(data):
        length, kind, _, sequence, _ = struct.unpack_from("<IHHII", data, at)
        if length < 16 or at + length > len(data):
            raise EgressError("the kernel sent a message that is longer than its datagram")
        yield kind, sequence, data[at + 16 : at + length]
        at += (length + 3) & ~3


def _transact(messages: list[tuple[int, int, bytes]], failure: str) -> None:
    """Send `messages` (kind, flags, body) as one transaction; wait until each is acknowledged."""
    frames = [_message(_BATCH_BEGIN, 0, 0, 0, _SUBSYS, b"")]
    for sequence, (kind, flags, body) in enumerate(messages, start=1):
        frames.append(_message(kind, flags | _NLM_F_ACK, sequence, _FAMILY_INET, 0, body))
    frames.append(_message(_BATCH_END, 0, len(messages) + 1, 0, _SUBSYS, b""))
    with _netlink() as sock:
        batch = b"".join(frames)
        try:
            # The kernel needs the whole transaction in one datagram.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, max(212_992, 2 * len(batch)))
            sock.sendto(batch, (0, 0))
            waiting = set(range(1, len(messages) + 1))
            while waiting:
                for kind, sequence, body in _answers(sock.recv(_RECEIVE_BYTES)):
                    if kind == _NLMSG_ERROR:
                        _raise_for(body, failure)
                        waiting.discard(sequence)
        except OSError as error:
            raise EgressError(f"{failure}: {error}") from error


def _raise_for(body: bytes, failure: str) -> None:
    (code,) = struct.unpack_from("<i", body)
    if code == 0:
        return
    why = os.strerror(-code)
    if -code == errno.EPERM:
        why += ": it takes CAP_NET_ADMIN in the network namespace (compose: cap_add: [NET_ADMIN])"
    elif -code in (errno.ENOENT, errno.EOPNOTSUPP):
        why += ": the kernel lacks nf_tables, or its inet family"
    raise EgressError(f"{failure}: {why}")


def _dump(sock: socket.socket, kind: int, body: bytes) -> list[bytes]:
    """Return the attributes of every object that the kernel lists."""
    found: list[bytes] = []
    try:
        sock.sendto(_message(kind, _NLM_F_DUMP, 1, _FAMILY_INET, 0, body), (0, 0))
        while True:
            for answer, _, content in _answers(sock.recv(_RECEIVE_BYTES)):
                if answer == _NLMSG_DONE:
                    return found
                if answer == _NLMSG_ERROR:
                    _raise_for(content, "the kernel does not list its tables")
                    return found
                found.append(content[4:])
    except OSError as error:
        raise EgressError(f"the kernel does not list its tables: {error}") from error
