"""Programs that are run for each request: see kind.py."""

from pyttpd_vhost.kinds.cgi.kind import CgiKind

__all__ = ["CgiKind"]
