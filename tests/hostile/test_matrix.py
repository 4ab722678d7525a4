"""The three locks, each alone and together, from every uid that meets foreign bytes (DESIGN section 6)."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from hostile import matrix
from hostile.attempts import ATTEMPTS
from hostile.stage import ALL, EVERYBODY, LISTENER, NONE, TENANT, WITH_DATABASE, Lock, Outcomes, Who, play

pytestmark = pytest.mark.root

NETWORK = frozenset(a.name for a in ATTEMPTS.values() if a.network)
OF_ONES_OWN = frozenset(a.name for a in ATTEMPTS.values() if a.network and a.group == "sockets")

#: What each lock stops by itself, whatever becomes of the others.
CLAIMS: dict[Lock, frozenset[str]] = {
    Lock.NAMESPACES: OF_ONES_OWN | {"new socket: MPTCP", "sockets: another tenant's, abstract"},
    Lock.LANDLOCK: frozenset(
        {
            "client: connect",
            "client: bind",
            "client: TCP_FASTOPEN_CONNECT",
            "client: io_uring connect",
            "listening: connect",
            "new socket: TCP",
            "io_uring: socket",
            "files: read another tenant's",
            "files: write what is only to be read",
            "channel directory: create",
            "channel directory: replace",
            "channel directory: unlink",
            "sockets: another tenant's, abstract",
        }
        | {a.name for a in ATTEMPTS.values() if a.group == "processes"}
    ),
    Lock.SECCOMP: frozenset(
        a.name
        for a in ATTEMPTS.values()
        # Paths and pids are beyond a filter's sight: /proc and signals are Landlock's.
        if a.group in ("descriptors", "sockets", "entries", "privileges")
        or a.name.startswith(("pidfd_getfd", "ptrace", "process_vm_readv", "kcmp"))
    ),
    Lock.EGRESS: NETWORK,
}


@functools.cache
def played(who: Who, locks: frozenset[Lock]) -> Outcomes:
    return play(who, locks)


def succeeded(outcomes: Outcomes) -> dict[str, str]:
    return {name: each["detail"] for name, each in outcomes.items() if each["outcome"] == "SUCCEEDED"}


def test_every_claim_names_an_attempt() -> None:
    assert frozenset().union(*CLAIMS.values()) <= set(ATTEMPTS)


@pytest.mark.parametrize("who", EVERYBODY, ids=lambda who: who.name)
def test_behind_all_locks_nothing_succeeds(who: Who) -> None:
    outcomes = played(who, ALL)
    assert succeeded(outcomes) == {}
    assert {name for name, each in outcomes.items() if each["outcome"] == "refused"} >= NETWORK


@pytest.mark.parametrize("who", [TENANT, LISTENER], ids=lambda who: who.name)
def test_without_locks_the_network_is_reached(who: Who) -> None:
    """Otherwise the other tests would prove nothing."""
    outcomes = played(who, NONE)
    missed = {name: outcomes[name] for name in NETWORK if outcomes[name]["outcome"] == "refused"}
    assert missed == {}
    assert len(NETWORK - set(succeeded(outcomes))) <= 2, (
        "io_uring may be missing, the rest is in every kernel"
    )


@pytest.mark.parametrize("who", [TENANT, LISTENER], ids=lambda who: who.name)
@pytest.mark.parametrize("lock", Lock, ids=lambda lock: lock.name.lower())
def test_each_lock_alone_stops_what_it_claims(who: Who, lock: Lock) -> None:
    through = succeeded(played(who, frozenset({lock})))
    claims = CLAIMS[lock]
    if who is not TENANT:
        # Allowed to a tenant and therefore no claim there; a role's filter refuses both.
        claims |= {"run a program", "fork"} if lock is Lock.SECCOMP else frozenset()
    assert {name: detail for name, detail in through.items() if name in claims} == {}


@pytest.mark.parametrize("left_out", [Lock.LANDLOCK, Lock.SECCOMP], ids=lambda lock: lock.name.lower())
def test_no_connection_is_opened_when_one_lock_fails(left_out: Lock) -> None:
    """Any one of the locks may have a hole tomorrow: the network stays out of reach."""
    through = succeeded(played(TENANT, ALL - {left_out}))
    assert set(through) & NETWORK == set()


#: A connection that is turned round goes where Landlock lets it: to the allowed port, at any address.
BY_THE_EGRESS_RULE_ALONE = {"client: connect", "listening: connect"}


@pytest.mark.parametrize("left_out", Lock, ids=lambda lock: lock.name.lower())
def test_with_a_database_one_port_is_left_to_the_egress_rule_and_nothing_else(left_out: Lock) -> None:
    """The target has the port of what is allowed, and another address."""
    through = succeeded(played(WITH_DATABASE, ALL - {left_out}))
    assert set(through) & NETWORK == (BY_THE_EGRESS_RULE_ALONE if left_out is Lock.EGRESS else set())


def test_the_matrix_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    tried = {"no lock": played(TENANT, NONE)}
    tried |= {lock.value: played(TENANT, frozenset({lock})) for lock in Lock}
    tried["all"] = played(TENANT, ALL)
    table = matrix.render(tried)
    with capsys.disabled():
        print(f"\n{table}")
    assert table.count("\n") == 1 + len(matrix.GROUPS) + len(ATTEMPTS)
    for attempt in ATTEMPTS.values():
        assert f"| {attempt.name}: {attempt.text} |" in table


def test_the_matrix_is_put_between_its_markers(tmp_path: Path) -> None:
    file = tmp_path / "SECURITY.md"
    file.write_text(f"before\n{matrix.BEGIN}\nold\n{matrix.END}\nafter\n")
    for table in ("| first |", "| second |"):
        matrix.write(file, table)
    text = file.read_text()
    assert text.startswith(f"before\n{matrix.BEGIN}\n{matrix.INTRODUCTION}")
    assert text.endswith(f"| second |\n{matrix.END}\nafter\n")
    assert "\nold\n" not in text
    assert "| first |" not in text
    file.write_text("nothing")
    with pytest.raises(ValueError, match="has no"):
        matrix.write(file, "")
