"""ASGI applications, by uvicorn's protocol classes, in an event loop of the worker's."""

from pyttpd_vhost.kinds.asgi.kind import AsgiKind

__all__ = ["AsgiKind"]
