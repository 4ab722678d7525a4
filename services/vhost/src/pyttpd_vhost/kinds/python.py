"""Python applications, for the kinds that import one: where their modules are, and the import itself."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyttpd import virtualenv

if TYPE_CHECKING:
    from pyttpd.config.shares import VhostShare

    from pyttpd_vhost.site import SiteLog


def prepare(share: VhostShare, log: SiteLog) -> None:
    """Let this process find the modules in the root, python_path and virtualenv of `share`, and set its environment.

    Once for all applications of a vhost. Raises VirtualenvError.
    """
    sys.path[:0] = [share.root, *share.python_path]
    if share.virtualenv is not None:
        virtualenv.activate(virtualenv.look(share.virtualenv))
        for folder in virtualenv.unreadable():
            log.warning("not to be read by the tenant: add it to python_path, if it is needed", folder=folder)
    os.environ.update(share.env)


def load_application(name: str) -> Any:
    """Import the application `name`: "module:attr", attr may have dots. Raises whatever the import raises."""
    module, _, attribute = name.partition(":")
    application: Any = import_module(module)
    for each in attribute.split("."):
        application = getattr(application, each)
    if not callable(application):
        raise TypeError(f"{name} is not callable")
    return application
