"""What uvicorn says of an application, in the tenant's log, as all kinds write it.

Uvicorn's classes log by a logger; they get this in its place. It knows whose request it was.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.utils import ClientDisconnected

from pyttpd_vhost.audit import MAX_FRAMES, MAX_NAME

if TYPE_CHECKING:
    from pyttpd_vhost.kinds.asgi.line import Line

#: An exception's causes that are looked at: frameworks wrap once or twice, anyio in groups.
_MAX_CAUSES = 16


class Complaints:
    """Of one line's application. The part of logging.Logger that uvicorn's protocols use."""

    __slots__ = ("_line",)
    level = logging.INFO

    def __init__(self, line: Line) -> None:
        self._line = line

    def error(self, text: str, *args: object, exc_info: BaseException | None = None) -> None:
        """An application has failed, or not done what it has to."""
        line = self._line
        if exc_info is not None and self._harmless(exc_info):
            return
        line.owner.site.stats.errors += 1
        request, log = line.exchange.request, line.owner.site.log
        told: dict[str, object] = {
            "method": request.method,
            "target": request.target.decode("latin-1"),
            "client": line.exchange.client[0],
        }
        if exc_info is None:
            log.warning("application failed", **told, error=text % args if args else text)
        else:
            log.warning(
                "application failed", **told, error=type(exc_info).__name__, traceback=shown(exc_info)
            )

    def exception(self, text: str, *args: object) -> None:
        """The same, of the exception that is being handled; a client's text that is none is its own fault."""
        if isinstance(sys.exc_info()[1], UnicodeDecodeError) and text.startswith("Invalid UTF-8"):
            return
        self.error(text, *args, exc_info=sys.exc_info()[1])

    def _harmless(self, error: BaseException) -> bool:
        """Whether it comes of the client's leaving, or of our ending the request: nobody's fault."""
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            return task is not None and task.cancelling() > 0
        return any(isinstance(each, ClientDisconnected) for each in _causes(error))

    def warning(self, text: str, *args: object, **_: object) -> None:
        """What clients do wrong."""
        self._line.owner.site.log.debug("uvicorn", text=text % args if args else text)

    def info(self, text: str, *args: object, **more: object) -> None:
        """Requests: they are in the access log."""

    log = debug = info

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - logging's
        """Say that nobody wants to see frames."""
        return False


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield `error`, and what it comes of or is made of."""
    todo: list[BaseException | None] = [error]
    for _ in range(_MAX_CAUSES):
        if not todo:
            return
        each = todo.pop()
        if each is None:
            continue
        yield each
        todo += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            todo += each.exceptions


def shown(error: BaseException) -> str:
    """Return the traceback of an application's exception."""
    try:
        return "".join(traceback.format_exception(error))
    except BaseException:  # noqa: BLE001 - it is the tenant's object: the client gets its 500 all the same
        return "the traceback can't be shown"


def stack(task: Any) -> list[str]:
    """Return where a task waits, a line for each frame, the innermost last. Reads no source file."""
    lines: list[str] = []
    awaited: Any = task.get_coro() if task is not None else None
    while awaited is not None and len(lines) < MAX_FRAMES:
        frame: FrameType | None = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None:
            code = frame.f_code
            lines.append(
                f'  File "{code.co_filename[-MAX_NAME:]}", line {frame.f_lineno}, in {code.co_qualname[-MAX_NAME:]}'
            )
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return lines or ["  (it has ended)"]
