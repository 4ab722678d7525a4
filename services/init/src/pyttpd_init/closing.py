"""Closing a listening socket so that nobody who has connected is reset.

When the last copy of a listening socket is closed, the kernel resets every connection that waits in its queue. So
first no new one is let in: a filter on the socket (socket(7), SO_ATTACH_FILTER) drops the first packet of whoever
wants to connect, and nothing else. Who had begun comes through, the listener accepts what is there for a moment
more, and closes. Clients that come meanwhile try again by themselves a second later, and are then told that nobody
listens.
"""

from __future__ import annotations

import ctypes
import socket
import struct

#: Not in the socket module (asm-generic/socket.h).
_SO_ATTACH_FILTER = 26
#: linux/bpf_common.h: what the five instructions are made of.
_LOAD_BYTE, _AND, _JUMP_IF_EQUAL, _RETURN = 0x30, 0x54, 0x15, 0x06
#: Of the TCP header (RFC 9293, 3.1): where the flags are, and SYN and ACK among them.
_FLAGS, _SYN, _ACK = 13, 0x02, 0x10
_DROP, _ALL = 0, 0xFFFFFFFF
_PROGRAM = (
    (_LOAD_BYTE, 0, 0, _FLAGS),
    (_AND, 0, 0, _SYN | _ACK),
    (_JUMP_IF_EQUAL, 0, 1, _SYN),
    (_RETURN, 0, 0, _DROP),
    (_RETURN, 0, 0, _ALL),
)
_INSTRUCTION = struct.Struct("HBBI")


def let_nobody_in(sock: socket.socket) -> None:
    """Have the kernel drop who wants to connect to the listening socket `sock` from now on. All copies of it are
    one.
    """
    code = b"".join(_INSTRUCTION.pack(*each) for each in _PROGRAM)
    held = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(_PROGRAM), ctypes.addressof(held))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
