"""The egress rule, against the kernel, in network namespaces that the tests make themselves."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import subprocess
from typing import Any

import pytest

from pyttpd.address import Address, parse
from pyttpd.namespaces import enter_network_namespace

from pyttpd_init import egress
from pyttpd_init.egress import (
    Allowed,
    EgressError,
    UidRange,
    remove_egress,
    set_egress,
    socket_made_by,
    tables,
    verify_egress,
)
from support.play import outcome, play

root = pytest.mark.root
#: What is dropped never answers (s).
PATIENCE = 0.3
OUTPUT = "add chain inet pyttpd output { type filter hook output priority 0; }"
#: Our rules, as somebody would write them.
SEGMENTS = "add rule inet pyttpd output meta l4proto tcp tcp flags & (syn | ack) != syn accept"
REST = (
    "add rule inet pyttpd output meta l4proto tcp counter drop\n"
    "add rule inet pyttpd output meta skuid != 4294967295 counter drop"
)


def connect(address: Any, uid: int = 0, family: int = socket.AF_INET) -> str:
    with socket_made_by(uid, family, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE)
        return outcome(sock.connect, address)


@root
def test_nothing_new_goes_out_and_answers_do() -> None:
    def scene() -> Any:
        enter_network_namespace()
        with (
            socket.create_server(("127.0.0.1", 0)) as before,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
            socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
        ):
            free = connect(before.getsockname())
            set_egress()
            client = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
            client.settimeout(PATIENCE)
            dropped = [
                connect(before.getsockname()),
                outcome(udp.sendto, b"x", before.getsockname()),
                outcome(client.connect, six.getsockname()),
            ]
            client.close()
            counted = verify_egress()
            return free, dropped, counted.packets, counted.bytes > 0, tables()

    free, dropped, packets, some_bytes, names = play(scene)
    assert free == "done"
    # A datagram is refused to its sender's face; a connection attempt hears nothing.
    assert dropped == ["TimeoutError", "PermissionError", "TimeoutError"]
    assert packets >= 3
    assert some_bytes
    assert names == ["pyttpd"]


#: Everything of which a process may make sockets, and can send with: type, and protocol where it isn't the usual one.
MPTCP, SCTP, UDPLITE, NOBODYS = 262, 132, 136, 253
OPENING = (
    (socket.SOCK_STREAM, 0),
    (socket.SOCK_STREAM, MPTCP),
    (socket.SOCK_STREAM, SCTP),
    (socket.SOCK_DGRAM, 0),
    (socket.SOCK_DGRAM, UDPLITE),
    (socket.SOCK_DGRAM, socket.IPPROTO_ICMP),
    (socket.SOCK_RAW, socket.IPPROTO_ICMP),
    (socket.SOCK_RAW, NOBODYS),
)
PING = struct.pack(">BBHHH", 8, 0, 0xF7FF, 0, 0)
MSG_FASTOPEN = 0x20000000


@root
@pytest.mark.parametrize("uid", [None, 20_001])
def test_whatever_opens_something(uid: int | None) -> None:
    """By every protocol that this kernel has; by a SYN with more flags than that one (ECN), and by one with data."""

    def scene() -> Any:
        enter_network_namespace()
        for name, value in (("ping_group_range", "0 2147483647"), ("tcp_ecn", "1"), ("tcp_fastopen", "5")):
            with open(f"/proc/sys/net/ipv4/{name}", "w") as setting:
                setting.write(value)
        found = {}
        with socket.create_server(("127.0.0.1", 0)) as door:
            address = door.getsockname()
            set_egress(None if uid is None else [UidRange(uid, uid)])
            os.seteuid(uid or 0)
            for kind, protocol in (*OPENING, (socket.SOCK_STREAM, MSG_FASTOPEN)):
                fast = protocol == MSG_FASTOPEN
                try:
                    sock = socket.socket(socket.AF_INET, kind, 0 if fast else protocol)
                except OSError:
                    continue  # this kernel, or this uid, has none
                with sock:
                    sock.settimeout(PATIENCE)
                    if fast:
                        said = outcome(sock.sendto, b"x", MSG_FASTOPEN, address)
                    elif kind == socket.SOCK_STREAM:
                        said = outcome(sock.connect, address)
                    else:
                        said = outcome(sock.sendto, PING, address)
                found[f"{int(kind)} {protocol}"] = said
            os.seteuid(0)
            counted = verify_egress(by_uid=uid is not None).packets
            door.settimeout(PATIENCE)
            return found, counted, outcome(door.accept)

    found, counted, accepted = play(scene)
    assert len(found) >= 4
    assert found.pop("1 0") == "TimeoutError"
    assert found.pop("2 0") == "PermissionError"
    # That call doesn't wait for an answer.
    assert found.pop(f"1 {MSG_FASTOPEN}") == "done"
    assert set(found.values()) <= {"TimeoutError", "PermissionError"}, found
    assert counted >= 3 + len(found)
    assert accepted == "TimeoutError"


@root
def test_nothing_is_remembered_of_a_connection() -> None:
    """A table of the machine's connections could be filled, and each packet would pay for it."""

    def scene() -> Any:
        enter_network_namespace()
        set_egress([UidRange(20_001, 20_001)])
        with socket.create_server(("127.0.0.1", 0)) as door, socket.create_connection(door.getsockname()):
            path = "/proc/sys/net/netfilter/nf_conntrack_count"
            return int(open(path).read()) if os.path.exists(path) else 0

    assert play(scene) == 0


@root
def test_who_comes_in_is_answered() -> None:
    """From another namespace, over a pair of virtual interfaces: as Docker's published ports come in."""

    def heard() -> bool:
        """What a kernel says by itself: it answers a ping, and tells who calls where nobody is."""
        with (
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as ping,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        ):
            ping.settimeout(5)
            ping.sendto(PING, ("198.51.100.2", 0))
            udp.settimeout(5)
            udp.connect(("198.51.100.2", 9))
            udp.send(b"x")
            refused = [
                outcome(udp.recv, 1),
                outcome(lambda: socket.create_connection(("198.51.100.2", 9), timeout=5)),
            ]
            return ping.recv(64)[20:22] == bytes(2) and refused == ["ConnectionRefusedError"] * 2

    def scene() -> Any:
        from pyroute2 import IPRoute

        enter_network_namespace()
        ready, done = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            # The outside: brings an interface up once it has been given one.
            signal.alarm(10)
            try:
                enter_network_namespace()
                os.write(ready[1], b".")
                os.read(done[0], 1)
                with IPRoute() as ip:
                    there = ip.link_lookup(ifname="outside")[0]
                    ip.addr("add", index=there, address="198.51.100.1", prefixlen=24)
                    ip.link("set", index=there, state="up")
                with socket.create_connection(("198.51.100.2", 8000), timeout=5) as client:
                    client.sendall(b"request")
                    answered = client.recv(16) == b"answer"
                    os.read(done[0], 1)  # with this process its interface would go
                    os._exit(0 if answered and heard() else 1)
            finally:
                os._exit(2)
        os.read(ready[0], 1)
        with IPRoute() as ip:
            ip.link("add", ifname="inside", kind="veth", peer={"ifname": "outside", "net_ns_pid": pid})
            here = ip.link_lookup(ifname="inside")[0]
            ip.addr("add", index=here, address="198.51.100.2", prefixlen=24)
            ip.link("set", index=here, state="up")
        set_egress()
        with socket.create_server(("198.51.100.2", 8000)) as door:
            door.settimeout(5)
            os.write(done[1], b".")
            connection, _ = door.accept()
            with connection:
                request = connection.recv(16).decode()
                connection.sendall(b"answer")
            back = socket.socket()
            back.settimeout(PATIENCE)
            outwards = outcome(back.connect, ("198.51.100.1", 8000))
            back.close()
            os.write(done[1], b".")
            _, status = os.waitpid(pid, 0)
        return request, status, outwards

    assert play(scene) == ["request", 0, "TimeoutError"]


@root
def test_by_uid_only_those_are_held_back() -> None:
    ranges = [UidRange(10_001, 10_031), UidRange(10_032, 10_040), UidRange(20_001, 2**31 - 2)]

    def scene() -> Any:
        enter_network_namespace()
        with socket.create_server(("127.0.0.1", 0)) as door:
            set_egress(ranges)
            verify_egress(by_uid=True)
            uids = (0, 10_000, 10_001, 10_035, 10_040, 10_041, 20_000, 20_001, 30_000)
            return {uid: connect(door.getsockname(), uid) for uid in uids}

    held = {int(uid) for uid, what in play(scene).items() if what == "TimeoutError"}
    assert held == {10_001, 10_035, 10_040, 20_001, 30_000}


#: Everybody on this stage: two databases with one port, on two addresses; something else on a third.
DATABASE, ANOTHER, SIX = "127.0.0.2:5432", "127.0.0.3:5432", "[::1]:5432"


def databases() -> list[socket.socket]:
    found = []
    for text in (DATABASE, ANOTHER, SIX, "127.0.0.2:5433"):
        address = parse(text)
        found.append(socket.create_server((address.host, address.port), family=address.family))
    return found


def reaches(uid: int = 0) -> list[str]:
    """Return which of the databases `uid` can connect to."""
    there = []
    for text in (DATABASE, ANOTHER, SIX, "127.0.0.2:5433"):
        address = parse(text)
        if connect((address.host, address.port), uid, address.family) == "done":
            there.append(text)
    # The same by way of an IPv6 socket: the packets are IPv4 all the same.
    if connect(("::ffff:127.0.0.2", 5432), uid, socket.AF_INET6) == "done":
        there.append("mapped")
    return there


@root
def test_what_is_allowed_is_one_address_one_port_and_tcp() -> None:
    allowed = [Allowed(parse(DATABASE)), Allowed(parse(SIX))]

    def scene() -> Any:
        enter_network_namespace()
        kept = databases()
        set_egress(allowed=allowed)
        verify_egress(allowed=allowed)
        found = reaches()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            datagram = outcome(udp.sendto, b"x", ("127.0.0.2", 5432))
        # Whoever expects another rule says so.
        others = [(), allowed[:1], [*allowed, Allowed(parse(ANOTHER))], [Allowed(parse(ANOTHER)), allowed[1]]]
        del kept
        return found, datagram, [outcome(lambda each=each: verify_egress(allowed=each)) for each in others]

    found, datagram, others = play(scene)
    assert found == [DATABASE, SIX, "mapped"]
    assert datagram == "PermissionError"
    assert others == ["EgressError"] * 4


@root
def test_an_exception_is_one_uids() -> None:
    """Two tenants, each with its own database; a listener, whose connections both are handed."""
    uids = [UidRange(10_010, 10_010), UidRange(20_001, 20_002)]
    allowed = [Allowed(parse(DATABASE), 20_001), Allowed(parse(ANOTHER), 20_002), Allowed(parse(SIX), 20_002)]

    def scene() -> Any:
        enter_network_namespace()
        kept = databases()
        set_egress(uids, allowed=allowed)
        verify_egress(by_uid=True, allowed=allowed)
        found = {uid: reaches(uid) for uid in (10_010, 20_001, 20_002)}
        # A client's connection, accepted by the listener, turned round by whoever has it.
        with socket_made_by(10_010, socket.AF_INET, socket.SOCK_STREAM) as door:
            door.bind(("127.0.0.1", 0))
            door.listen()
            turned = []
            for uid, database in ((20_001, 2), (20_001, 3), (20_002, 2), (20_002, 3)):
                with socket.create_connection(door.getsockname()):
                    os.seteuid(10_010)
                    accepted, _ = door.accept()
                    os.seteuid(0)
                    os.seteuid(uid)
                    with accepted:
                        libc = ctypes.CDLL(None)
                        assert libc.connect(accepted.fileno(), bytes(16), 16) == 0
                        accepted.settimeout(PATIENCE)
                        turned.append(outcome(accepted.connect, (f"127.0.0.{database}", 5432)))
                    os.seteuid(0)
        del kept
        return found, turned

    found, turned = play(scene)
    assert found == {"10010": [], "20001": [DATABASE, "mapped"], "20002": [ANOTHER, SIX]}
    assert turned == ["TimeoutError"] * 4


def test_an_exception_has_a_uid_where_the_rule_has() -> None:
    for uids, uid in ((None, 20_001), ([UidRange(20_001, 20_001)], None)):
        with pytest.raises(ValueError, match="only there"):
            set_egress(uids, allowed=[Allowed(Address("127.0.0.1", 1), uid)])


@root
def test_ten_thousand_tenants() -> None:
    def scene() -> Any:
        enter_network_namespace()
        with socket.create_server(("127.0.0.1", 0)) as door:
            allowed = [Allowed(Address("127.0.0.2", 5432), uid) for uid in range(20_001, 40_001, 2)]
            set_egress((UidRange(uid, uid) for uid in range(20_001, 40_001, 2)), allowed=allowed)
            verify_egress(by_uid=True, allowed=allowed)
            return [connect(door.getsockname(), uid) for uid in (20_003, 20_004, 39_999, 40_000)]

    assert play(scene) == ["TimeoutError", "done", "TimeoutError", "done"]


@root
@pytest.mark.program("nft")
def test_nft_reads_it_as_it_was_meant() -> None:
    def listing() -> str:
        done = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True)
        # some releases of nft write the first rule in another way
        return " ".join(done.stdout.split()).replace("!= syn / syn,ack", "& (syn | ack) != syn")

    def scene() -> Any:
        enter_network_namespace()
        listings = []
        for ranges in (None, [UidRange(20_001, 20_002), UidRange(10_001, 10_001)]):
            set_egress(ranges)
            listings.append(listing())
        for allowed in (
            [Allowed(parse(SIX))],
            [Allowed(parse(DATABASE), 20_001), Allowed(parse(SIX), 20_002)],
        ):
            set_egress([UidRange(20_001, 20_002)] if allowed[0].uid else None, allowed=allowed)
            listings.append(listing())
        return listings

    everybody, by_uid, but_one, two = play(scene)
    segments = "tcp flags & (syn | ack) != syn accept"
    assert "set allowed6 { type ipv6_addr . inet_service elements = { ::1 . 5432 } }" in but_one
    assert (
        "ip6 daddr . tcp dport @allowed6 counter packets 0 bytes 0 accept meta l4proto tcp counter" in but_one
    )
    assert (
        "set allowed4 { type uid . ipv4_addr . inet_service elements = { 20001 . 127.0.0.2 . 5432 } } "
        "set allowed6 { type uid . ipv6_addr . inet_service elements = { 20002 . ::1 . 5432 } }"
    ) in two
    assert "meta skuid . ip daddr . tcp dport @allowed4 counter packets 0 bytes 0 accept" in two
    assert everybody == (
        "table inet pyttpd { chain output { type filter hook output priority filter; policy accept; "
        f"{segments} meta l4proto tcp counter packets 0 bytes 0 drop "
        "meta skuid != 4294967295 counter packets 0 bytes 0 drop } }"
    )
    assert by_uid == (
        "table inet pyttpd { set uids { type uid flags interval elements = { 10001, 20001-20002 } } "
        "chain output { type filter hook output priority filter; policy accept; "
        f"{segments} meta skuid @uids counter packets 0 bytes 0 drop }} }}"
    )


@root
def test_it_is_replaced_and_removed_and_leaves_others_alone() -> None:
    def scene() -> Any:
        enter_network_namespace()
        set_egress(table="another")
        for _ in range(2):
            set_egress()
        both = tables()
        for _ in range(2):
            remove_egress()
        return both, tables(), outcome(verify_egress), outcome(lambda: verify_egress(table="another"))

    both, left, ours, other = play(scene)
    assert both == ["another", "pyttpd"]
    assert left == ["another"]
    assert (ours, other) == ("EgressError", "done")


@root
@pytest.mark.program("nft")
@pytest.mark.parametrize(
    "rules",
    [
        "add table inet pyttpd",
        "add chain inet pyttpd output { type filter hook input priority 0; }",
        OUTPUT,
        f"{OUTPUT}\n{SEGMENTS}\nadd rule inet pyttpd output meta l4proto tcp counter drop",
        f"{OUTPUT}\n{SEGMENTS.replace('!=', '==')}\n{REST}",
        f"{OUTPUT}\n{SEGMENTS.replace('syn | ack', 'syn')}\n{REST}",
        f"{OUTPUT}\n{SEGMENTS}\n{REST.replace('drop', 'accept')}",
        f"{OUTPUT}\n{SEGMENTS}\n{REST.replace('tcp', 'udp')}",
        f"{OUTPUT}\nadd rule inet pyttpd output accept\n{SEGMENTS}\n{REST}",
    ],
)
def test_another_rule_is_not_taken_for_ours(rules: str) -> None:
    def scene() -> Any:
        enter_network_namespace()
        subprocess.run(["nft", "-f", "-"], input=f"add table inet pyttpd\n{rules}\n", text=True, check=True)
        return outcome(verify_egress)

    assert play(scene) == "EgressError"


@root
@pytest.mark.program("nft")
def test_what_nft_makes_of_our_rules_is_ours() -> None:
    """So those above are refused for what they say, and not for how nft says it."""

    def scene() -> Any:
        enter_network_namespace()
        subprocess.run(
            ["nft", "-f", "-"],
            input=f"add table inet pyttpd\n{OUTPUT}\n{SEGMENTS}\n{REST}\n",
            text=True,
            check=True,
        )
        return outcome(verify_egress)

    assert play(scene) == "done"


@root
def test_without_the_capability_it_says_what_is_missing() -> None:
    def scene() -> Any:
        enter_network_namespace()
        os.setresuid(20_001, 20_001, 20_001)
        try:
            set_egress()
        except EgressError as error:
            return str(error)
        return "set"

    assert "CAP_NET_ADMIN" in play(scene)


@pytest.mark.parametrize(("first", "last"), [(0, 5), (5, 4), (-1, 1), (1, 2**32 - 1)])
def test_no_range(first: int, last: int) -> None:
    with pytest.raises(ValueError, match="no range"):
        UidRange(first, last)


def test_ranges_that_touch_become_one() -> None:
    ranges = [UidRange(5, 6), UidRange(1, 2), UidRange(3, 3), UidRange(9, 20), UidRange(10, 12)]
    assert egress._merge(ranges) == [UidRange(1, 3), UidRange(5, 6), UidRange(9, 20)]
    with pytest.raises(EgressError, match="no uids"):
        set_egress([])


@pytest.mark.parametrize("data", [struct.pack("<HH", 3, 1), struct.pack("<HH", 9, 1) + b"1234"])
def test_attributes_with_a_wrong_length_are_refused(data: bytes) -> None:
    with pytest.raises(EgressError, match="longer"):
        list(egress._attrs(data))


@pytest.mark.parametrize(
    "data", [struct.pack("<IHHII", 15, 2, 0, 0, 0), struct.pack("<IHHII", 17, 2, 0, 0, 0)]
)
def test_messages_with_a_wrong_length_are_refused(data: bytes) -> None:
    with pytest.raises(EgressError, match="longer"):
        list(egress._answers(data))


@pytest.mark.parametrize(
    ("code", "told"), [(1, "CAP_NET_ADMIN"), (2, "lacks nf_tables"), (95, "lacks"), (12, "memory")]
)
def test_what_the_kernel_answers_is_explained(code: int, told: str) -> None:
    with pytest.raises(EgressError, match=told):
        egress._raise_for(struct.pack("<i", -code), "it failed")
    egress._raise_for(struct.pack("<i", 0), "it did not fail")
