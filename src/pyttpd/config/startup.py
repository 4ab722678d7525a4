"""Reading the configuration as a role starts: all that is wrong goes into the log, and the role doesn't start."""

from __future__ import annotations

from pyttpd.config.errors import ConfigErrors
from pyttpd.config.loader import load
from pyttpd.config.model import Config
from pyttpd.log import Log
from pyttpd.service import StartError


def read(path: str, log: Log) -> Config:
    """Return the configuration in `path`, with `log` set as it says. Raises StartError."""
    if not path:
        raise StartError("--config FILE is missing")
    try:
        config = load(path)
    except ConfigErrors as errors:
        for error in errors.errors:
            log.error("configuration", error=error)
        wrong = "1 error" if errors.count == 1 else f"{errors.count} errors"
        raise StartError(f"{path}: {wrong}; see `pyttpd check`") from None
    log.level, log.format = config.log.level, config.log.format
    return config
