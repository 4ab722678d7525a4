"""Static files, as nginx and Apache serve them: see kind.py."""

from pyttpd_vhost.kinds.static.kind import StaticKind

__all__ = ["StaticKind"]
