"""Plays a function in a forked child, so that the namespaces it enters and the rights it drops end with it."""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Callable
from typing import Any

#: No play takes longer than a second; a hung one is ended (s).
PATIENCE = 30


def play(action: Callable[[], Any]) -> Any:
    """Run `action` in a forked child; return what it returns, by way of JSON. An error there is one here."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        status = 1
        try:
            signal.alarm(PATIENCE)
            os.write(write, json.dumps(action()).encode())
            status = 0
        except BaseException:
            os.write(write, json.dumps(traceback.format_exc()).encode())
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as answers:
        text = answers.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, json.loads(text) if text else f"the child ended with status {status:#x}"
    return json.loads(text)


def outcome(action: Callable[..., Any], *args: Any) -> str:
    """Return the name of the error that `action` raises, or "done"."""
    try:
        action(*args)
    except Exception as error:
        return type(error).__name__
    return "done"
