"""The tables of PROTOCOL.md, made from the wire's own: `python -m pyttpd.wire.document --write PROTOCOL.md`.

What a message's fields look like in bytes stands here once more, in words (`LAYOUT`), because a reader needs it and the
codec's lambdas don't say it. Nobody has to believe it: tests/unit/test_wire_document.py packs messages by this table
alone and compares the result with the codec's.

In step with: `messages`, `permits`, `pyttpd.roles`, PROTOCOL.md (a test compares it with what this makes).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from pyttpd.roles import ROLES, Channel, binder_of
from pyttpd.wire import messages as m
from pyttpd.wire.permits import PERMITS, Kind, Side

BEGIN, END = "<!-- {}:begin -->", "<!-- {}:end -->"


class Field(NamedTuple):
    """One field of a body. `wire` is how it travels; `size` its bytes, None if it takes the rest of the body.

    A field without a name is padding: zeroes when sent, not looked at when received. Fields of a message that the
    header's id holds stand in no body, and so not here.
    """

    name: str
    wire: str
    size: int | None
    meaning: str


def _padding(size: int) -> Field:
    return Field("", f"{size} bytes of 0" if size > 1 else "one byte of 0", size, "")


def _choice(name: str, choices: tuple[str, ...]) -> Field:
    return Field(name, "u8", 1, ", ".join(f"{number} {choice}" for number, choice in enumerate(choices)))


def _u32(name: str, meaning: str) -> Field:
    return Field(name, "u32", 4, meaning)


_NAME = Field("name", "name", m.NAME_SIZE, "lower-case letters, digits, `_.-`; the rest of the field is 0")
_CLIENT = Field(
    "client",
    "address",
    m.CLIENT_SIZE,
    "u8 family (4 or 6), u16 port, 16 bytes address, of which IPv4 uses the first 4",
)
_MARK = Field("mark", "u8", 1, "the connection's mark, as long as the offer counts; 0: any. Not in version 1")
_AUTHORITY = Field(
    "authority",
    "text",
    None,
    "0 to 255 bytes: the normalised host name; on the metrics listener a vhost's name",
)
_REASON = Field("reason", "text", None, "0 to 200 bytes of printable ASCII, for the log")
_NUMBER = _u32("number", "the worker, as its supervisor counts them")
_GENERATION = Field("generation", "u64", 8, "of the configuration")
_CONFIGURATION = Field("digest", "32 bytes", 32, "SHA-256 of the configuration's files")
_SOCKET = (_choice("use", m.SOCKET_USES), _padding(3), _NAME)

#: Each message's body, field after field.
LAYOUT: dict[m.MessageType, tuple[Field, ...]] = {
    m.Hello: (
        Field("oldest", "u8", 1, "the oldest version that the sender understands"),
        Field("newest", "u8", 1, "the newest"),
        _choice("role", m.ROLE_NAMES),
        _padding(1),
        _NAME,
    ),
    m.Welcome: (
        Field("version", "u8", 1, "the version to speak from now on"),
        _padding(3),
        _u32("credits", "ROUTEs that may be open at a time; 0 on other channels"),
    ),
    m.Goodbye: (_REASON,),
    m.Socket: _SOCKET,
    m.SocketsEnd: (_u32("total", "how many Sockets there were"),),
    m.Wanted: _SOCKET,
    m.Return: _SOCKET,
    m.Prepare: (_CONFIGURATION,),
    m.Prepared: (_CONFIGURATION,),
    m.Unprepared: (_REASON,),
    m.Commit: (_CONFIGURATION,),
    m.Abort: (),
    m.Holds: (_CONFIGURATION,),
    m.Share: (
        _GENERATION,
        _choice("part", m.SHARE_PARTS),
        _padding(3),
        _u32("size", "of the memfd, in bytes"),
        Field("digest", "32 bytes", 32, "SHA-256 of the memfd's content"),
    ),
    m.ShareOk: (_GENERATION,),
    m.ShareFailed: (_GENERATION, _REASON),
    m.Renew: (),
    m.Command: (
        _choice("verb", m.VERBS),
        _padding(3),
        Field("name", "name", 64, "a vhost, or nothing: the configuration as a whole"),
    ),
    m.Told: (Field("text", "text", None, "0 to 200 bytes of printable ASCII, for the log and the operator"),),
    m.Answer: (
        _choice("outcome", m.OUTCOMES),
        _padding(3),
        _u32("size", "of the memfd, in bytes"),
        Field("digest", "32 bytes", 32, "SHA-256 of the memfd's content"),
    ),
    m.Route: (_CLIENT, _MARK, _AUTHORITY),
    m.Settled: (Field("ids", "u64, 1 to 64 times", None, "the connections, by the ids of who offered them"),),
    m.Refuse: (Field("status", "u16", 2, "400 to 599"),),
    m.Retry: (),
    m.Drop: (),
    m.Worker: (_NUMBER, _choice("work", m.WORK), _padding(3)),
    m.Gone: (_NUMBER,),
    m.Stuck: (_NUMBER,),
    m.Demand: (
        _u32("waiting", "connections that wait; 0: none any more"),
        _u32("oldest_ms", "for how long the first of them has"),
    ),
    m.Standing: (_choice("state", m.STANDINGS), _padding(3)),
    m.Credit: (Field("more", "u16", 2, "so many connections more"),),
    m.Dispatch: (_CLIENT, _MARK, _AUTHORITY),
    m.Taken: (),
    m.Pass: (_CLIENT, _MARK, _AUTHORITY),
    m.Spawn: (_NUMBER, _u32("slot", "its row of the scoreboard")),
    m.Spawned: (_NUMBER, _u32("pid", "its process; the supervisor asks the kernel whether that is so")),
    m.Attach: (Field("version", "u8", 1, "the version to speak from now on"), _padding(3)),
    m.Ready: (),
    m.Beat: (),
    m.Detached: (),
    m.Failed: (_REASON,),
    m.Detail: (
        Field("text", "text", None, "0 to 200 bytes of printable ASCII, for the log and the operator"),
    ),
}

#: Who is at the two ends of the channels that are socketpairs; the others' are in `pyttpd.roles`.
_PAIRS = {
    Kind.WORKER: ("worker (or supervisor, for metrics)", "umaster"),
    Kind.CONTROL: ("prototype or worker", "supervisor"),
}


def ends(kind: Kind) -> tuple[str, str]:
    """Return who connects and who binds a channel of this kind, in words."""
    if kind in _PAIRS:
        return _PAIRS[kind]
    channel = Channel(kind.value)
    if channel is Channel.ADMIN:
        return "operator", binder_of(channel).value
    connectors = [role.value for role, row in ROLES.items() if channel in row.connects]
    return ", ".join(connectors), binder_of(channel).value


def _permitted(cls: m.MessageType) -> str:
    """Return the channels that `cls` travels on."""
    kinds = {kind.value: None for (kind, _, _), permits in PERMITS.items() if cls in permits}
    return ", ".join(f"`{kind}`" for kind in kinds)


def messages_table() -> str:
    """Return the list of messages: code, channels, descriptor, body, meaning."""
    lines = [
        "| type | message | on | id | descriptor | body | meaning |",
        "| --: | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(m.MESSAGES, key=lambda row: row.code):
        body = "<br>".join(
            f"{field.wire} **{field.name}**" if field.name else field.wire for field in LAYOUT[row.cls]
        )
        lines.append(
            f"| {row.code} | {row.cls.__name__} | {_permitted(row.cls)} | {'connection' if row.about_one else '0'} | "
            f"{row.descriptor.value if row.descriptor else '-'} | {body or '-'} | {_meaning(row.cls)} |"
        )
    return "\n".join(lines)


def _meaning(cls: m.MessageType) -> str:
    return " ".join((cls.__doc__ or "").split())


def fields_table() -> str:
    """Return what each named field means; fields that are the same everywhere stand once."""
    lines = ["| field | in | meaning |", "| --- | --- | --- |"]
    where: dict[Field, list[str]] = {}
    for row in m.MESSAGES:
        for field in LAYOUT[row.cls]:
            if field.name:
                where.setdefault(field, []).append(row.cls.__name__)
    lines += [f"| {field.name} | {', '.join(names)} | {field.meaning} |" for field, names in where.items()]
    return "\n".join(lines)


def permits_table() -> str:
    """Return who may send what, one row for each direction and phase of each kind of channel."""
    lines = ["| channel | sender | phase | may send |", "| --- | --- | --- | --- |"]
    for (kind, side, phase), permits in PERMITS.items():
        sender = ends(kind)[side is Side.BINDER]
        allowed = [
            cls.__name__ if after is phase else f"{cls.__name__} (then {after.value})"
            for cls, after in permits.items()
        ]
        lines.append(f"| `{kind.value}` | {sender} | {phase.value} | {', '.join(allowed) or 'nothing'} |")
    return "\n".join(lines)


SECTIONS = {"messages": messages_table, "fields": fields_table, "permits": permits_table}


def fill(text: str) -> str:
    """Return `text` with what stands between each section's markers made anew. Raises ValueError if one lacks them."""
    for name, make in SECTIONS.items():
        before, begin, rest = text.partition(BEGIN.format(name))
        _, end, after = rest.partition(END.format(name))
        if not begin or not end:
            raise ValueError(f"there is no {BEGIN.format(name)} ... {END.format(name)}")
        text = f"{before}{begin}\n{make()}\n{end}{after}"
    return text


def main(arguments: list[str]) -> int:
    """Print the tables, or put them into a file; return the exit status."""
    match arguments:
        case []:
            sys.stdout.write("\n\n".join(make() for make in SECTIONS.values()) + "\n")
        case ["--write", path]:
            file = Path(path)
            file.write_text(fill(file.read_text(encoding="utf-8")), encoding="utf-8")
        case _:
            sys.stderr.write("usage: python -m pyttpd.wire.document [--write PROTOCOL.md]\n")
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
