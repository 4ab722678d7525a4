"""A tenant's logs, as its supervisor keeps them: what workers send of the access log, and the files it asks for."""

from __future__ import annotations

from collections.abc import Iterator

from pyttpd.config.shares import VhostShare
from pyttpd.log import Log, write
from pyttpd.service import Service

from pyttpd_vhost.logfile import LOOK_INTERVAL, LogFile
from pyttpd_vhost.output import Entries, Output


class Logs:
    """What the tenant prints, and its access log. Opened once, with the first share, before anything is forked."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._loop = service.loop
        self._log = service.log
        self._output = Output(service.loop, service.log)
        self._entries: Entries | None = None
        self._files: dict[str, LogFile] = {}

    @property
    def printed(self) -> int:
        """The descriptor that the tenant's processes print to."""
        return self._output.fd

    @property
    def slow(self) -> Log:
        """Where it is told what takes too long."""
        return self._output.slow or self._output.log

    @property
    def entries(self) -> int:
        """The descriptor that workers send the access log to, -1 for none."""
        return self._entries.fd if self._entries is not None else -1

    def open(self, share: VhostShare) -> None:
        """Open the tenant's log files, if it has any, and what its workers send their access log to."""
        logs, options = share.logs, self._service.options
        paths = (
            ("access", logs.access_log_file if logs.access_log != "off" else None),
            ("error", logs.error_log_file),
            ("slow", logs.slow_log_file),
        )
        for which, path in paths:
            if path is not None:
                self._files[which] = LogFile(path, logs.log_file_limit, self._log)
        if logs.access_log != "off":
            self._entries = Entries(
                self._loop,
                self._log,
                form=logs.access_log,
                vhost=share.name,
                file=self._files.get("access"),
                shared=options.shared_output,
            )
        if (error := self._files.get("error")) is not None:
            self._output.log = self._log_to(error, share)
        if (slow := self._files.get("slow")) is not None:
            self._output.slow = self._log_to(slow, share)
        if self._entries is not None or self._files:
            self._loop.call_later(LOOK_INTERVAL, self._look)

    def _log_to(self, file: LogFile, share: VhostShare) -> Log:
        """Return what writes to `file`, or to the role's log as long as that can't be opened."""

        def write_printed(line: bytes) -> None:
            (file.write if file.is_open else write)(line)

        log = Log(self._service.role.value, share.name, write=write_printed)
        log.level, log.format = share.log.level, share.log.format
        return log

    def _look(self) -> None:
        for file in self._files.values():
            file.look()
        if self._entries is not None:
            self._entries.tell()
        self._loop.call_later(LOOK_INTERVAL, self._look)

    def lost(self) -> Iterator[tuple[str, int]]:
        """Yield each log and how many lines are in none."""
        access = self._entries.lost if self._entries is not None else 0
        for which, more in (("access", access), ("error", 0), ("slow", 0)):
            file = self._files.get(which)
            yield which, more + (file.lost if file is not None else 0)

    def finish(self) -> None:
        """Write what is still on its way."""
        self._output.finish()
        if self._entries is not None:
            self._entries.finish()
