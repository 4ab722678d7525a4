"""Reading the configuration as a role starts: all that is wrong goes into the log, and the role doesn't start."""

from __future__ import annotations

from pyttpd.config.changes import compare
from pyttpd.config.errors import ConfigErrors
from pyttpd.config.loader import load
from pyttpd.config.model import Config
from pyttpd.log import Log
from pyttpd.office import Outcome
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


def read_again(path: str, old: Config) -> Outcome:
    """Return what the configuration is now, and what that changes of `old`; or all that is wrong with it."""
    try:
        config = load(path, generation=old.generation + 1)
    except ConfigErrors as errors:
        return Outcome("", tuple(str(error) for error in errors.errors), errors.count)
    return Outcome(config.digest, (), 0, config, compare(old, config))
