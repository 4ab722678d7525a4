"""The tables of PROTOCOL.md: what they say of bytes is what the codec does."""

from __future__ import annotations

import ipaddress
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from pyttpd.wire import document
from pyttpd.wire import messages as m
from pyttpd.wire.permits import PERMITS, Kind

V4, V6 = m.Client("192.0.2.7", 40_000), m.Client("2001:db8::1", 443)
#: One of each, with a different value in every field.
EXAMPLES: tuple[Any, ...] = (
    m.Hello("listener", "http", 1, 3),
    m.Welcome(1, 4096),
    m.Goodbye("leaving"),
    m.Socket("metrics", "umaster"),
    m.SocketsEnd(2),
    m.Wanted("listen", "http"),
    m.Return("listen", "http"),
    m.Prepare(bytes(range(32))),
    m.Prepared(bytes(range(32))),
    m.Unprepared("cannot listen"),
    m.Commit(bytes(range(32))),
    m.Abort(),
    m.Holds(bytes(range(32))),
    m.Share(7, "map", 65_537, bytes(range(32))),
    m.ShareOk(2**40),
    m.ShareFailed(3, "ImportError: no module named site"),
    m.Renew(),
    m.Command("plan", "blog"),
    m.Told("reading"),
    m.Answer("failed", 3, bytes(range(32))),
    m.Route(5, V4, "blog.example", 7),
    m.Settled((1, 2**33)),
    m.Refuse(6, 421),
    m.Retry(7),
    m.Drop(8),
    m.Worker(3, "metrics"),
    m.Gone(4),
    m.Stuck(5),
    m.Demand(6, 7),
    m.Standing("failing"),
    m.Credit(8),
    m.Dispatch(2**63, V6, ""),
    m.Taken(9),
    m.Pass(10, V4, "[2001:db8::1]", 127),
    m.Spawn(11, 12),
    m.Spawned(13, 4_194_304),
    m.Attach(1),
    m.Ready(),
    m.Beat(),
    m.Detached(),
    m.Failed("ImportError: no module named site"),
    m.Detail("Traceback (most recent call last):"),
)
CHOICES = {
    "role": m.ROLE_NAMES,
    "use": m.SOCKET_USES,
    "part": m.SHARE_PARTS,
    "verb": m.VERBS,
    "outcome": m.OUTCOMES,
    "state": m.STANDINGS,
    "work": m.WORK,
}


def by_the_document(message: Any) -> bytes:
    """Pack a message's body by what LAYOUT says in words, without a line of the codec."""
    body = b""
    for field in document.LAYOUT[type(message)]:
        if not field.name:
            body += bytes(field.size or 0)
            continue
        value = getattr(message, field.name)
        if field.name in CHOICES:
            value = CHOICES[field.name].index(value)
        match field.wire:
            case "u8" | "u16" | "u32" | "u64":
                packed = int(value).to_bytes(int(field.wire[1:]) // 8, "big")
            case "name":
                packed = value.encode().ljust(64, b"\0")
            case "address":
                address = ipaddress.ip_address(value.host)
                packed = (
                    bytes([address.version]) + struct.pack("!H", value.port) + address.packed.ljust(16, b"\0")
                )
            case "text":
                packed = value.encode()
            case "32 bytes":
                packed = value
            case "u64, 1 to 64 times":
                packed = b"".join(struct.pack("!Q", each) for each in value)
            case other:
                pytest.fail(f"{type(message).__name__}.{field.name}: what is {other!r}?")
        assert field.size in (None, len(packed)), field
        body += packed
    return body


def test_there_is_an_example_of_each_message() -> None:
    assert [type(each) for each in EXAMPLES] == [row.cls for row in m.MESSAGES]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_the_documented_bytes_are_the_codecs(message: Any) -> None:
    frame = m.encode(message)
    assert frame[m.HEADER.size :] == by_the_document(message)
    assert m.decode(frame) == message


@pytest.mark.parametrize("row", m.MESSAGES, ids=lambda row: row.cls.__name__)
def test_every_field_is_documented(row: m.Row) -> None:
    named = {field.name for field in document.LAYOUT[row.cls] if field.name}
    assert named | ({"id"} if row.about_one else set()) == set(get_type_hints(row.cls))


def test_no_message_is_documented_that_there_is_not() -> None:
    assert set(document.LAYOUT) == set(m.BY_CLASS)


def test_every_message_may_be_sent_by_somebody() -> None:
    assert {cls for permits in PERMITS.values() for cls in permits} == set(m.BY_CLASS)


def test_every_kind_of_channel_has_two_ends() -> None:
    for kind in Kind:
        connector, binder = document.ends(kind)
        assert connector
        assert binder


def test_it_fills_in_between_markers_and_nowhere_else(tmp_path: Path) -> None:
    file = tmp_path / "P.md"
    text = "before\n" + "".join(
        f"{document.BEGIN.format(name)}\nOUTDATED\n{document.END.format(name)}\nbetween\n"
        for name in document.SECTIONS
    )
    file.write_text(text)
    assert document.main(["--write", str(file)]) == 0
    filled = file.read_text()
    assert filled.startswith("before\n")
    assert filled.count("between\n") == len(document.SECTIONS)
    assert "OUTDATED" not in filled
    assert document.fill(filled) == filled


def test_a_file_without_markers_is_an_error() -> None:
    with pytest.raises(ValueError, match="messages:begin"):
        document.fill("nothing here\n")


def test_the_command() -> None:
    command = [sys.executable, "-I", "-m", "pyttpd.wire.document"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(make() in shown for make in document.SECTIONS.values())
    wrong = subprocess.run([*command, "what"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("usage: ")
