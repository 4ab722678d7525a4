"""The only table of roles: name, uid, channel directories, metrics port.

In step with it: compose.yaml, k8s/, README's role table, ARCHITECTURE.md (a test compares them).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Role(enum.Enum):
    """A process category of DESIGN section 2. The value is its name: folder, program, image, log name, metric
    prefix.
    """

    INIT = "init"
    MASTER = "master"
    UMASTER = "umaster"
    LISTENER = "listener"
    VHOST = "vhost"


class Channel(enum.Enum):
    """A trust relation: the directory its socket lies in, bound by one role and connected to by others."""

    INIT = "init"
    MASTER = "master"
    ADMIN = "admin"
    ROUTE = "route"
    VHOST = "vhost"


@dataclass(frozen=True, slots=True)
class RoleRow:
    """One row of the table. `uid` is the first one where a role has several instances; `metrics_offset` is added
    to the metrics base port (None: reached through the tenants' shared port).
    """

    uid: int
    metrics_offset: int | None
    binds: tuple[Channel, ...]
    connects: tuple[Channel, ...]


ROLES: dict[Role, RoleRow] = {
    Role.INIT: RoleRow(0, 0, (Channel.INIT,), ()),
    Role.MASTER: RoleRow(10001, 1, (Channel.MASTER, Channel.ADMIN), (Channel.INIT,)),
    Role.UMASTER: RoleRow(10002, 2, (Channel.ROUTE, Channel.VHOST), (Channel.INIT, Channel.MASTER)),
    Role.LISTENER: RoleRow(10010, 3, (), (Channel.INIT, Channel.MASTER, Channel.ROUTE)),
    Role.VHOST: RoleRow(20001, None, (), (Channel.MASTER, Channel.VHOST)),
}

#: init's where it needs no privilege: a pod's ports may be bound by anybody. In plain mode as root its metrics child's.
UNPRIVILEGED_INIT_UID = 10_000

#: The listener of the tenants' shared metrics port: its name, its uid, its port's and its own metrics' offset.
METRICS_LISTENER = "metrics"
METRICS_LISTENER_UID = 10009
METRICS_LISTENER_OFFSET = 9
TENANT_METRICS_OFFSET = 10

#: Listeners' metrics ports lie between the first listener's offset and the metrics listener's.
MAX_LISTENERS = METRICS_LISTENER_OFFSET - 3
MAX_VHOSTS = 10_000
MAX_NAMES = 100_000
#: Tenants' uids start here, so that none can be configured to be a role's or a system account's.
MIN_VHOST_UID = 20_001
MAX_UID = 2**31 - 2


def binder_of(channel: Channel) -> Role:
    """Return the role that binds the socket of `channel`."""
    return next(role for role, row in ROLES.items() if channel in row.binds)
