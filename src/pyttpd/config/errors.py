"""What is wrong with a configuration: all of it at once, each with its place."""

from __future__ import annotations

from dataclasses import dataclass

from pyttpd.config.limits import MAX_ERRORS

#: Of a text from a file, so much appears in an error: enough to recognise it.
SHOWN_LENGTH = 80


def printable(text: str, limit: int = SHOWN_LENGTH) -> str:
    """Return `text` fit for a terminal: control, format and other unprintable characters gone, at most `limit` long.

    Strings of a configuration may come from a generator that copies a tenant's input.
    """
    shown = "".join([character for character in text[: 4 * limit] if character.isprintable()])
    return shown if len(shown) <= limit and len(text) <= 4 * limit else shown[: limit - 1] + "…"


@dataclass(frozen=True, slots=True)
class ConfigError:
    """One thing that is wrong: the file (as the operator named it), its line where known, the table and key
    ("[vhost.blog] uid"; "" for a whole file), and what was wrong and what would be right.
    """

    file: str
    line: int | None
    where: str
    message: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join([part for part in (place, self.where, self.message) if part])


class ConfigErrors(Exception):
    """Everything that is wrong with a configuration, in the order of its files and lines.

    `errors` holds at most MAX_ERRORS; `count` is how many there were.
    """

    def __init__(self, errors: list[ConfigError]) -> None:
        self.count = len(errors)
        self.errors = tuple(errors[:MAX_ERRORS])
        super().__init__(errors)

    def __str__(self) -> str:
        lines = [str(error) for error in self.errors]
        if self.count > len(lines):
            lines.append(f"... and {self.count - len(lines)} more")
        return "\n".join(lines)
