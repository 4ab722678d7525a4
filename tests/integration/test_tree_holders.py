"""init and a listener, who hold the listening socket, are killed at one moment. Who waits in its queue isn't lost."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
from collections.abc import Callable

from integration.test_tree_replacement import BOTH, all_ready, role_process
from support.leaks import state
from support.tree import ANSWER_WITHIN, Tree

REQUEST = b"GET /x HTTP/1.1\r\nHost: wsgi.localhost\r\nConnection: close\r\n\r\n"
CLIENTS = 20
ROLES = (("init", ""), ("listener", "http"))
#: What the log says of it.
WORDS = (
    "died",
    "lost",
    "away",
    "ended",
    "gone",
    "asked back",
    "keeper ended",
    "still listening",
    "is stopped",
)


def read_all(client: socket.socket) -> bytes:
    answer = b""
    while data := client.recv(65_536):
        answer += data
    return answer


def are_there(tree: Tree, but: set[int]) -> bool:
    """Say whether both roles have a keeper and a process, none of them in `but`: a health file outlives its keeper."""
    try:
        return not but & {pid for role in ROLES for pid in role_process(tree, *role)}
    except AssertionError:
        return False


def kill_both(tree: Tree, first: str, second: str) -> list[bytes]:
    """Kill two, each a role's process or "keeper ROLE", while clients wait in the queue; return the answers."""
    found = {}
    for role, name in ROLES:
        found[f"keeper {role}"], found[role] = role_process(tree, role, name)
    everybody = list(found.values())
    with contextlib.ExitStack() as stack:
        # Nobody accepts, and nobody is killed for being stopped but by us: that takes a second.
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)
        clients = []
        for _ in range(CLIENTS):
            client = stack.enter_context(
                socket.create_connection(("127.0.0.1", tree.port), ANSWER_WITHIN * 2)
            )
            client.sendall(REQUEST)
            clients.append(client)
        for victim in (first, second):
            os.kill(found[victim], signal.SIGKILL)
        # A role dies with its keeper; continued before that, it would accept who waits, and take them with it.
        dead = {
            found[victim.removeprefix(prefix)] for victim in (first, second) for prefix in ("", "keeper ")
        }
        tree.wait_for(lambda: all(state(pid) in "XZ" for pid in dead), 30.0)
        for pid in everybody:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        answers = [read_all(client) for client in clients]
    tree.wait_for(lambda: are_there(tree, dead), 30.0)
    tree.wait_for(lambda: all_ready(tree), 30.0)
    return answers


@BOTH
def test_who_waits_to_be_accepted_is_served_although_both_holders_were_killed(
    plant: Callable[..., Tree], ordinary: bool
) -> None:
    tree = plant(ordinary=ordinary)
    tree.expect(*WORDS)
    tree.wait_for(lambda: all_ready(tree), 20.0)
    for one, other in itertools.product(("init", "keeper init"), ("listener", "keeper listener")):
        for order in ((one, other), (other, one)):
            answers = kill_both(tree, *order)
            wrong = [answer[:80] for answer in answers if not answer.endswith(b"\r\n\r\n/x")]
            assert not wrong, f"{order}: {len(wrong)} of {CLIENTS}, the first: {wrong[0]!r}"
