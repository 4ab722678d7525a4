"""What init's keeper holds: the plans of the configuration in force and their sockets; and how another one comes
into force.

Rules
  1. Read, compared and bound by the keeper, which still has the right to. What isn't adopted leaves nothing behind.
  2. A socket whose address stays is kept, whoever it is for from now on: nobody who has connected is lost.
  3. What is new is bound before anything changes. An address that can't be bound because an old one of ours covers it
     (0.0.0.0 and 127.0.0.1, say) takes two reloads, or a restart: that is said.
  4. What is gone lets nobody in any more, and its last copy is closed by the listener that has accepted the rest
     (closing.py). Its owner hears that it has none when it comes (`former`).

The role's process is a fork of the keeper: it works with what was in force then, and asks for a successor when it
has had another one adopted.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field

from pyttpd.config.errors import ConfigErrors
from pyttpd.config.loader import load
from pyttpd.log import Log
from pyttpd.office import Outcome
from pyttpd.service import StartError

from pyttpd_init.closing import let_nobody_in
from pyttpd_init.deposit import Deposit
from pyttpd_init.sockets import AddressInUse, Plan, bind, is_planned, netns_cookie, plans

#: So many roles that have lost their sockets are remembered, so that they hear of it when they come.
MAX_FORMER = 64


@dataclass(slots=True)
class Candidate:
    """A configuration that has been read and bound, and isn't in force. `bound` are the sockets made for it."""

    digest: str
    plans: list[Plan]
    sockets: dict[Plan, socket.socket]
    bound: list[socket.socket] = field(default_factory=list)


class Holding:
    """See the module's text. It is init's desk (`pyttpd.office.Desk`)."""

    def __init__(self) -> None:
        self.path = ""
        self.digest = ""
        self.plans: list[Plan] = []
        self.sockets: dict[Plan, socket.socket] = {}
        self.former: list[Plan] = []
        self.log = Log("init")
        #: Where copies are, for the keeper after this one.
        self.deposit = Deposit(None, self.log)
        self._candidate: Candidate | None = None

    def find(self) -> None:
        """Take from the deposit what the plans ask for; the rest is kept no longer, and its ports are free."""
        with socket.socket() as any_socket:
            cookie = netns_cookie(any_socket)
        for sock in self.deposit.look():
            plan = next(
                (plan for plan in self.plans if plan not in self.sockets and is_planned(sock, plan, cookie)),
                None,
            )
            if plan is None:
                sock.close()
                continue
            sock.setblocking(False)
            sock.listen(plan.backlog)  # which may be another one now
            self.sockets[plan] = sock
            self.log.info("still listening", socket=plan)
        self.lay()

    def lay(self) -> None:
        self.deposit.lay(self.sockets.values())

    def read(self) -> Outcome:
        try:
            config = load(self.path)
        except ConfigErrors as errors:
            return Outcome("", tuple(str(error) for error in errors.errors), errors.count)
        return Outcome(config.digest, more=plans(config))

    def prepare(self, outcome: Outcome) -> Outcome:
        assert isinstance(outcome.more, list)
        wanted: list[Plan] = outcome.more
        open_now = {plan.address: sock for plan, sock in self.sockets.items()}
        asked_back = {plan.address for plan in self.plans if plan not in self.sockets}
        found = Candidate(outcome.digest, wanted, {})
        try:
            for plan in wanted:
                sock = open_now.get(plan.address)
                if sock is None:
                    if plan.address in asked_back:
                        continue
                    sock = bind(plan)
                    found.bound.append(sock)
                found.sockets[plan] = sock
        except StartError as error:
            for sock in found.bound:
                sock.close()
            return Outcome.refusal(self._explained(error, wanted), outcome.digest)
        self._candidate = found
        return Outcome(outcome.digest)

    def _explained(self, error: StartError, wanted: list[Plan]) -> str:
        ours = [plan for plan in self.plans if plan.address not in {each.address for each in wanted}]
        hint = ""
        if isinstance(error, AddressInUse) and ours:
            hint = (
                "; if that is because of one that this reload closes "
                f"({', '.join(str(plan) for plan in ours[:3])}), close it first, with a reload of its own"
            )
        return f"{error}{hint}"

    def adopt(self) -> None:
        found, self._candidate = self._candidate, None
        assert found is not None
        kept = {sock.fileno() for sock in found.sockets.values()}
        self.deposit.lay(found.sockets.values())
        for plan, sock in self.sockets.items():
            if sock.fileno() not in kept:
                self.log.info("listening no more", socket=plan)
                try:
                    let_nobody_in(sock)
                except OSError as error:
                    self.log.warning("who connects meanwhile may be reset", socket=plan, error=error.strerror)
                sock.close()
        for plan, sock in found.sockets.items():
            if sock in found.bound:
                self.log.info("listening", socket=plan)
            else:
                sock.listen(plan.backlog)  # which may be all that has changed of it
        owners = {(plan.role, plan.name, plan.uid) for plan in found.plans}
        gone = [
            plan for plan in (*self.plans, *self.former) if (plan.role, plan.name, plan.uid) not in owners
        ]
        self.former = gone[:MAX_FORMER]
        self.digest, self.plans, self.sockets = found.digest, found.plans, found.sockets

    def keep(self, what: bytes, fd: int) -> None:
        """Keep a socket that was brought back to the role: what this process lacks, since it was started anew.

        The role has looked at it; so do we, who have more rights than it has.
        """
        try:
            sock = socket.socket(fileno=fd)
        except OSError:
            os.close(fd)
            return
        missing = next(
            (plan for plan in self.plans if plan not in self.sockets and str(plan).encode() == what), None
        )
        with socket.socket() as any_socket:
            cookie = netns_cookie(any_socket)
        if missing is None or not is_planned(sock, missing, cookie):
            sock.close()
            return
        self.sockets[missing] = sock
        self.lay()

    def retire(self) -> None:
        """Nothing waits for that: what is gone is gone at once."""

    def drop(self) -> None:
        found, self._candidate = self._candidate, None
        if found is not None:
            for sock in found.bound:
                sock.close()
