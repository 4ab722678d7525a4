"""Connections handed over to a program of the tenant's: see kind.py, and docs/handoff.md for what is said."""

from pyttpd_vhost.kinds.handoff.kind import HandoffKind

__all__ = ["HandoffKind"]
