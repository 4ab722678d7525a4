"""A bounded memory of what paths lead to, which is never older than the request that it answers.

Theory of operation. An entry is used again if every name that it was made of still leads to the same (`Entry.checks`,
one stat(2) each): that costs a tenth of opening and reading the files anew. It is asked once in each turn of the
worker's loop: the requests of one turn had all come before it began, so what was true then is true for them. Who
has replaced a file and asks for it afterwards therefore gets the new one, always, and a busy worker looks at a file
once for many requests. Where no loop says what a turn is (`Site.turn` is None), each request asks.

Bounded in paths (the operator's `cache`), bytes and descriptors. Who is put in when it is full drives out who has been
in it the longest and wasn't asked for since the last time round.

Any thread may ask; only putting in takes the lock. An entry that was driven out lives on for as long as somebody has
it.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from pyttpd_vhost.openat2 import Root, identity

if TYPE_CHECKING:
    from pyttpd_vhost.kinds.static.files import Entry
    from pyttpd_vhost.site import Site

#: Bytes of files, in one worker: 500 of the largest that are kept at all (READ_LIMIT).
MAX_BYTES = 16 << 20

#: Open files in one worker. A quarter of its descriptors isn't for connections (worker.py); this is half of that where
#: the limit is the usual 1024.
MAX_DESCRIPTORS = 128


class Cache:
    """See the module's text."""

    def __init__(self, root: Root, limit: int, site: Site) -> None:
        self._root = root
        self._limit = limit
        self._site = site
        self._entries: dict[bytes, Entry] = {}
        self._bytes = 0
        self._descriptors = 0
        self._lock = threading.Lock()

    def valid(self, entry: Entry) -> bool:
        """Whether `entry` is as good as a new one."""
        turn = self._site.turn
        if turn is not None and entry.turn is turn:
            return True
        try:
            for path, known in entry.checks:
                if identity(os.stat(path, dir_fd=self._root.fd)) != known:
                    return False
        except OSError:
            return False
        # The machine's clock was set back: no answer may be younger than itself (RFC 9110, 8.8.2.1).
        if entry.modified > time.time():
            return False
        entry.turn = turn
        return True

    def get(self, path: bytes) -> Entry | None:
        """Return the entry for a request's path as sent, None if there is none, or none that is valid."""
        entry = self._entries.get(path)
        if entry is None:
            return None
        if self.valid(entry):
            entry.used = True
            return entry
        with self._lock:
            if self._entries.get(path) is entry:
                self._remove(path)
        return None

    def put(self, path: bytes, entry: Entry) -> None:
        """Keep `entry`, if it is settled."""
        if not entry.settled or not self._limit:
            return
        with self._lock:
            self._remove(path)
            self._entries[path] = entry
            self._bytes += entry.content_bytes
            self._descriptors += entry.descriptors
            while (
                len(self._entries) > self._limit
                or self._bytes > MAX_BYTES
                or self._descriptors > MAX_DESCRIPTORS
            ):
                oldest = next(iter(self._entries))
                if (one := self._entries[oldest]).used:
                    one.used = False
                    self._entries[oldest] = self._entries.pop(oldest)  # to the end
                else:
                    self._remove(oldest)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            for path in list(self._entries):
                self._remove(path)

    def _remove(self, path: bytes) -> None:
        entry = self._entries.pop(path, None)
        if entry is not None:
            self._bytes -= entry.content_bytes
            self._descriptors -= entry.descriptors
