"""Take over clients' connections from pyttpd: the program's side of the hand-off protocol, version 1.

One file, the standard library alone, no other code of pyttpd's: copy it beside your program. The protocol is described
in docs/handoff.md of pyttpd. Three ways to use it:

    for client in listen():                    # one connection at a time, in as many processes as you like
        with client:
            client.sock ...

    serve_threads(handle, threads=16)          # handle(client) in a thread for each connection

    await serve_asyncio(factory)               # an asyncio protocol for each connection: aiohttp, h11, websockets...

What is yours to do with a connection is in docs/handoff.md ("What a program owes"). In short: it is yours until it
ends; answer as an HTTP/1.1 server; unless `client.whole`, end it after an answer (`Connection: close`).
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import io
import os
import selectors
import signal
import socket
import struct
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator

VERSION = 1
HELLO, WELCOME, CONNECTION, ACCEPTED, BUSY, CREDIT, GOODBYE = range(1, 8)
WHOLE, SECURE = 1, 2
#: The most credit that a worker of pyttpd takes, and the longest packet that it sends.
MAX_CREDIT = 128
MAX_PACKET = 160 * 1024
_HEADER = struct.Struct("!BBHI")
_LOOK = 0.5
_LISTENER = 0  # pyttpd starts programs with their listening socket as descriptor 0


class ProtocolError(Exception):
    """The other end has said what this protocol doesn't have."""


class Client:
    """A client's connection that was handed over. Yours: close it.

    `sock` is the connection, blocking. `data` is what has been read from it already ("" if nothing was): the request
    begins with it. `address` and `port` are the client's, `host` is what it has asked for, `mount` the path below which
    the program answers ("" for all), `whole` says that it is all paths, `secure` that the client uses HTTPS, as a
    trusted proxy says.
    """

    def __init__(
        self,
        sock: socket.socket,
        data: bytes = b"",
        address: str = "",
        port: int = 0,
        host: str = "",
        mount: str = "",
        flags: int = WHOLE,
        done: Callable[[], None] | None = None,
    ) -> None:
        self.sock = sock
        self.data = data
        self.address = address
        self.port = port
        self.host = host
        self.mount = mount
        self.whole = bool(flags & WHOLE)
        self.secure = bool(flags & SECURE)
        self._done = done

    def makefile(self) -> io.BufferedReader:
        """Return a file to read the connection from, `data` first. Closing it doesn't close the connection."""
        return io.BufferedReader(_Reader(self.sock, self.data))

    def close(self) -> None:
        """End the connection, and take another one instead. To be called once whoever serves it is done."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(
                socket.SHUT_RDWR
            )  # another process may still have a copy: close() alone is no end
        self.sock.close()
        self.release()

    def release(self) -> None:
        """Take another connection instead; the socket is left as it is."""
        done, self._done = self._done, None
        if done is not None:
            done()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Reader(io.RawIOBase):
    def __init__(self, sock: socket.socket, data: bytes) -> None:
        self._sock = sock
        self._data = data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        if self._data:
            count = min(len(buffer), len(self._data))
            buffer[:count] = self._data[:count]
            self._data = self._data[count:]
            return count
        return self._sock.recv_into(buffer)


class Channel:
    """One channel from a worker of pyttpd. Owns `sock`, a SOCK_SEQPACKET socket. Any thread may send."""

    def __init__(self, sock: socket.socket, *, credit: int, name: str) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.vhost = ""
        self.closed = False
        self._credit = max(1, min(credit, MAX_CREDIT))
        self._name = name
        self._greeted = False
        self._leaving = False

    def receive(self) -> Client | None:
        """Take one message; return the connection that it brings, which is accepted then. None: it brings none.

        Raises BlockingIOError if nothing is there, and ProtocolError. `closed` afterwards: the worker is gone.
        """
        try:
            packet, ancillary, flags, _ = self.sock.recvmsg(
                MAX_PACKET, socket.CMSG_SPACE(16), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionError:
            packet, ancillary, flags = b"", [], 0
        fds = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        try:
            if not packet:
                self.closed = True
                return None
            return self._heed(packet, fds, flags)
        except (struct.error, IndexError, UnicodeDecodeError, ValueError) as error:
            raise ProtocolError(f"not a message: {error}") from None
        finally:
            for fd in fds:
                os.close(fd)

    def _heed(self, packet: bytes, fds: array.array[int], flags: int) -> Client | None:
        version, kind, _, id_ = _HEADER.unpack_from(packet)
        body = packet[_HEADER.size :]
        if flags & socket.MSG_TRUNC or version != VERSION:
            raise ProtocolError(f"a packet that is too long, or of version {version}")
        if kind == HELLO and not self._greeted and body[0] >= VERSION:
            self.vhost, _ = _text(body, 1)
            self._greeted = True
            self._say(WELCOME, struct.pack("!H", self._credit) + _packed(self._name))
            return None
        if kind == GOODBYE:
            return None  # the end of the channel follows
        if kind != CONNECTION or not self._greeted:
            raise ProtocolError(f"type {kind} is not for this moment")
        if flags & socket.MSG_CTRUNC or not fds:
            # no descriptor was free: the kernel has destroyed the connection's
            self._say(BUSY, id_=id_)
            self.credit()
            return None
        mark, port = struct.unpack_from("!BH", body)
        address, at = _text(body, 3)
        host, at = _text(body, at)
        mount, at = _text(body, at)
        sock = socket.socket(fileno=fds.pop(0))
        sock.setblocking(True)
        if self._leaving or not self._say(ACCEPTED, id_=id_):
            # not taken: the worker's copy, or nobody's, is the only one then
            sock.close()
            self._say(BUSY, id_=id_)
            return None
        return Client(sock, body[at:], address, port, host, mount, mark, self.credit)

    def credit(self, count: int = 1) -> None:
        """Ask for so many connections more."""
        if not self._leaving:
            self._say(CREDIT, struct.pack("!H", count))

    def leave(self, reason: str = "") -> None:
        """Ask for no more connections. Go on reading until `closed`: what has come already is refused."""
        if not self._leaving:
            self._leaving = True
            self._say(GOODBYE, _packed(reason))
            with contextlib.suppress(OSError):
                self.sock.shutdown(
                    socket.SHUT_RD
                )  # nothing more can come now; what has come can still be read

    def close(self) -> None:
        self.closed = True
        self.sock.close()

    def _say(self, kind: int, body: bytes = b"", id_: int = 0) -> bool:
        try:
            self.sock.send(_HEADER.pack(VERSION, kind, 0, id_) + body, socket.MSG_NOSIGNAL)
        except OSError:
            return False  # the worker is gone, or will hear of it when this channel is read next
        return True


def _packed(text: str) -> bytes:
    data = text.encode()[:255]
    return struct.pack("!H", len(data)) + data


def _text(body: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("!H", body, at)
    end = at + 2 + length
    if end > len(body):
        raise ValueError("a text that is longer than its packet")
    return body[at + 2 : end].decode(), end


def listener(path: str | None = None) -> socket.socket:
    """Return the listening socket: the one that pyttpd started us with, or a new one at `path`.

    The latter only where this program isn't confined by pyttpd: a tenant's programs there can't listen.
    """
    if path is None:
        sock = socket.socket(fileno=os.dup(_LISTENER))
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_SEQPACKET:
            raise ValueError("descriptor 0 is no hand-off socket: this program is to be started by pyttpd")
        return sock
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    sock.bind(path)
    sock.listen(16)
    return sock


def listen(
    sock: socket.socket | None = None,
    *,
    credit: int = 1,
    name: str = "",
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Client]:
    """Yield connections, in one thread, until SIGTERM or `stop`. credit: how many are taken before one is closed."""
    leaving = False
    wake, waker = socket.socketpair()

    def leave(*_: object) -> None:
        nonlocal leaving
        leaving = True
        waker.send(b"\0")

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, leave) if main else None
    server = listener() if sock is None else sock
    server.setblocking(False)
    selector = selectors.DefaultSelector()
    selector.register(server, selectors.EVENT_READ)
    selector.register(wake, selectors.EVENT_READ)
    channels: set[Channel] = set()
    said = False
    try:
        while True:
            if (leaving or stop()) and not said:
                said = True
                selector.unregister(server)
                for channel in channels:
                    channel.leave("ends")
            if said and not channels:
                return
            for key, _ in selector.select(1.0):
                if key.fileobj is wake:
                    wake.recv(64)
                elif key.fileobj is server:
                    with contextlib.suppress(BlockingIOError, ConnectionError):
                        accepted, _ = server.accept()
                        channel = Channel(accepted, credit=credit, name=name or sys.argv[0])
                        channels.add(channel)
                        selector.register(accepted, selectors.EVENT_READ, channel)
                else:
                    channel = key.data
                    try:
                        client = channel.receive()
                    except BlockingIOError:
                        continue
                    except ProtocolError as error:
                        print(f"hand-off: {error}", file=sys.stderr)
                        channel.closed = True
                        client = None
                    if channel.closed:
                        selector.unregister(channel.sock)
                        channels.discard(channel)
                        channel.close()
                    if client is not None:
                        yield client
    finally:
        for channel in channels:
            channel.close()
        selector.close()
        server.close()
        wake.close()
        waker.close()
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def serve_threads(
    handle: Callable[[Client], object],
    sock: socket.socket | None = None,
    *,
    threads: int = 16,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Call `handle` for each connection in a thread of its own, `threads` for each worker of pyttpd at the most.

    The connection is closed when it returns.
    """

    def run(client: Client) -> None:
        with client:
            handle(client)

    running: list[threading.Thread] = []
    for client in listen(sock, credit=threads, stop=stop):
        running = [thread for thread in running if thread.is_alive()]
        thread = threading.Thread(target=run, args=(client,))
        running.append(thread)
        thread.start()
    for thread in running:
        thread.join()


async def serve_asyncio(
    factory: Callable[[], asyncio.Protocol],
    sock: socket.socket | None = None,
    *,
    credit: int = 64,
    stop: asyncio.Event | None = None,
    closing: Callable[[], Awaitable[object]] | None = None,
) -> None:
    """Give each connection to a new protocol of `factory`, until SIGTERM or `stop`; then wait for the last to end.

    closing(): is called before that wait, to have idle connections ended.
    """
    loop = asyncio.get_running_loop()
    stop = stop or asyncio.Event()
    if threading.current_thread() is threading.main_thread():
        loop.add_signal_handler(signal.SIGTERM, stop.set)
    gate = _Gate(factory, listener() if sock is None else sock, credit)
    try:
        await stop.wait()
        await gate.leave()
        if closing is not None:
            await closing()
        if gate.tasks:
            await asyncio.wait(set(gate.tasks))
    finally:
        gate.close()


class _Gate:
    """The listening socket and the channels of `serve_asyncio`, in its loop."""

    def __init__(self, factory: Callable[[], asyncio.Protocol], server: socket.socket, credit: int) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self._factory = factory
        self._server = server
        self._credit = credit
        self._channels: set[Channel] = set()
        self._loop = asyncio.get_running_loop()
        self._quiet = asyncio.Event()
        server.setblocking(False)
        self._loop.add_reader(server, self._accept)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            accepted, _ = self._server.accept()
            channel = Channel(accepted, credit=self._credit, name=sys.argv[0])
            self._channels.add(channel)
            self._loop.add_reader(accepted, self._receive, channel)

    def _receive(self, channel: Channel) -> None:
        try:
            while (client := channel.receive()) is not None or not channel.closed:
                if client is not None:
                    task = self._loop.create_task(self._serve(client))
                    self.tasks.add(task)
                    task.add_done_callback(self.tasks.discard)
        except BlockingIOError:
            return
        except ProtocolError as error:
            print(f"hand-off: {error}", file=sys.stderr)
        self._loop.remove_reader(channel.sock)
        self._channels.discard(channel)
        channel.close()
        if not self._channels:
            self._quiet.set()

    async def _serve(self, client: Client) -> None:
        with client:
            watch = _Watch(self._factory(), client.data)
            try:
                await self._loop.connect_accepted_socket(lambda: watch, client.sock)
            except OSError:
                return  # it has left
            # the transport closes the socket; a protocol that puts another one in its place hides its end from us
            while client.sock.fileno() >= 0 and not watch.lost.done():
                await asyncio.wait({watch.lost}, timeout=_LOOK)

    async def leave(self) -> None:
        """Ask for no more connections, and refuse what is on its way."""
        self._loop.remove_reader(self._server)
        for channel in self._channels:
            channel.leave("ends")
        if self._channels:
            self._quiet.clear()
            await self._quiet.wait()

    def close(self) -> None:
        self._loop.remove_reader(self._server)
        self._server.close()
        for channel in self._channels:
            self._loop.remove_reader(channel.sock)
            channel.close()


class _Watch(asyncio.Protocol):
    """Stands before a protocol: has it begin with `data`, and says in `lost` when its connection is."""

    def __init__(self, protocol: asyncio.Protocol, data: bytes) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._protocol = protocol
        self._data = data
        self.data_received = protocol.data_received  # type: ignore[method-assign]
        self.eof_received = protocol.eof_received  # type: ignore[method-assign]
        self.pause_writing = protocol.pause_writing  # type: ignore[method-assign]
        self.resume_writing = protocol.resume_writing  # type: ignore[method-assign]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._protocol.connection_made(transport)
        if self._data:
            self._protocol.data_received(self._data)

    def connection_lost(self, error: Exception | None) -> None:
        self._protocol.connection_lost(error)
        if not self.lost.done():
            self.lost.set_result(None)
