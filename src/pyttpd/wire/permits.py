"""Who may send which message on which channel in which phase. What is not in the table closes the channel.

A channel has two ends, CONNECTOR and BINDER, and each *direction* is a machine of its own: its phase is what
that sender has sent so far. A message maps to the phase that its sender is in afterwards.

    HELLO    nothing but the greeting
    OPEN     work
    LEAVING  after Goodbye: only what settles open work

A worker's and a control channel are socketpairs that come out of an open channel, so they begin OPEN.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from pyttpd.wire import messages as m


class Kind(enum.Enum):
    """The kinds of channel. The first five are `pyttpd.roles.Channel`'s directories, the others socketpairs."""

    INIT = "init"
    MASTER = "master"
    ADMIN = "admin"
    ROUTE = "route"
    VHOST = "vhost"
    WORKER = "worker"
    CONTROL = "control"


class Side(enum.Enum):
    """An end of a channel: who connected, or who bound. For WORKER: the worker, umaster; CONTROL: child, supervisor."""

    CONNECTOR = "connector"
    BINDER = "binder"


class Phase(enum.Enum):
    """How far one direction of a channel has come."""

    HELLO = "hello"
    OPEN = "open"
    LEAVING = "leaving"


Permits = Mapping[m.MessageType, Phase]

_O, _L = Phase.OPEN, Phase.LEAVING

PERMITS: dict[tuple[Kind, Side, Phase], Permits] = {
    (Kind.INIT, Side.CONNECTOR, Phase.HELLO): {m.Hello: _O},
    (Kind.INIT, Side.CONNECTOR, Phase.OPEN): {
        m.Return: _O,
        m.Prepare: _O,
        m.Commit: _O,
        m.Abort: _O,
    },
    (Kind.INIT, Side.BINDER, Phase.HELLO): {m.Welcome: _O},
    (Kind.INIT, Side.BINDER, Phase.OPEN): {
        m.Socket: _O,
        m.SocketsEnd: _O,
        m.Wanted: _O,
        m.Holds: _O,
        m.Prepared: _O,
        m.Unprepared: _O,
        m.Goodbye: _L,
    },
    (Kind.INIT, Side.BINDER, Phase.LEAVING): {},
    #
    (Kind.MASTER, Side.CONNECTOR, Phase.HELLO): {m.Hello: _O},
    (Kind.MASTER, Side.CONNECTOR, Phase.OPEN): {m.ShareOk: _O, m.ShareFailed: _O},
    (Kind.MASTER, Side.BINDER, Phase.HELLO): {m.Welcome: _O},
    (Kind.MASTER, Side.BINDER, Phase.OPEN): {m.Share: _O, m.Renew: _O, m.Goodbye: _L},
    (Kind.MASTER, Side.BINDER, Phase.LEAVING): {},
    #
    (Kind.ADMIN, Side.CONNECTOR, Phase.HELLO): {m.Hello: _O},
    (Kind.ADMIN, Side.CONNECTOR, Phase.OPEN): {m.Command: _O},
    (Kind.ADMIN, Side.BINDER, Phase.HELLO): {m.Welcome: _O},
    (Kind.ADMIN, Side.BINDER, Phase.OPEN): {m.Told: _O, m.Answer: _O, m.Goodbye: _L},
    (Kind.ADMIN, Side.BINDER, Phase.LEAVING): {},
    #
    (Kind.ROUTE, Side.CONNECTOR, Phase.HELLO): {m.Hello: _O},
    (Kind.ROUTE, Side.CONNECTOR, Phase.OPEN): {m.Route: _O, m.Goodbye: _L},
    (Kind.ROUTE, Side.CONNECTOR, Phase.LEAVING): {},
    (Kind.ROUTE, Side.BINDER, Phase.HELLO): {m.Welcome: _O},
    (Kind.ROUTE, Side.BINDER, Phase.OPEN): {
        m.Settled: _O,
        m.Refuse: _O,
        m.Retry: _O,
        m.Drop: _O,
        m.Goodbye: _L,
    },
    (Kind.ROUTE, Side.BINDER, Phase.LEAVING): {m.Settled: _L, m.Refuse: _L, m.Retry: _L, m.Drop: _L},
    #
    (Kind.VHOST, Side.CONNECTOR, Phase.HELLO): {m.Hello: _O},
    (Kind.VHOST, Side.CONNECTOR, Phase.OPEN): {
        m.Worker: _O,
        m.Gone: _O,
        m.Standing: _O,
        m.Goodbye: _L,
    },
    (Kind.VHOST, Side.CONNECTOR, Phase.LEAVING): {m.Gone: _L},
    (Kind.VHOST, Side.BINDER, Phase.HELLO): {m.Welcome: _O},
    (Kind.VHOST, Side.BINDER, Phase.OPEN): {m.Stuck: _O, m.Demand: _O, m.Standing: _O, m.Goodbye: _L},
    (Kind.VHOST, Side.BINDER, Phase.LEAVING): {m.Stuck: _L},
    #
    (Kind.WORKER, Side.CONNECTOR, Phase.OPEN): {m.Credit: _O, m.Taken: _O, m.Pass: _O, m.Goodbye: _L},
    (Kind.WORKER, Side.CONNECTOR, Phase.LEAVING): {m.Taken: _L, m.Pass: _L},
    (Kind.WORKER, Side.BINDER, Phase.OPEN): {
        m.Dispatch: _O,
        m.Settled: _O,
        m.Refuse: _O,
        m.Retry: _O,
        m.Drop: _O,
        m.Goodbye: _L,
    },
    (Kind.WORKER, Side.BINDER, Phase.LEAVING): {m.Settled: _L, m.Refuse: _L, m.Retry: _L, m.Drop: _L},
    #
    (Kind.CONTROL, Side.CONNECTOR, Phase.OPEN): {
        m.Ready: _O,
        m.Beat: _O,
        m.Detached: _O,
        m.Spawned: _O,
        m.Failed: _O,
        m.Detail: _O,
        m.Goodbye: _L,
    },
    (Kind.CONTROL, Side.CONNECTOR, Phase.LEAVING): {m.Beat: _L, m.Detached: _L},
    (Kind.CONTROL, Side.BINDER, Phase.OPEN): {m.Spawn: _O, m.Attach: _O, m.Goodbye: _L},
    (Kind.CONTROL, Side.BINDER, Phase.LEAVING): {m.Attach: _L, m.Goodbye: _L},
}


def first_phase(kind: Kind) -> Phase:
    """Return the phase that both directions of a channel of this kind begin in."""
    return Phase.OPEN if kind in (Kind.WORKER, Kind.CONTROL) else Phase.HELLO
