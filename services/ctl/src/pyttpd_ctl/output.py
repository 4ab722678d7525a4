"""What reaches the terminal: tables by rich, without its markup (names come from tenants), plain when piped."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from pyttpd.config.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import ConsoleOptions, RenderableType, RenderResult

#: A pipe has no width; tables shall not be folded in it.
_PIPE_WIDTH = 200
#: Blanks beside each cell (rows, columns).
_ROOMY, _TIGHT = (0, 1), (0, 0)
#: Wider than any table.
_UNBOUNDED = 10_000


def show_table(title: str, columns: Sequence[tuple[str, bool]], rows: Iterable[Sequence[str]]) -> None:
    """Print a table. `columns`: (heading, whether it is numeric). Cells are stripped of control characters."""
    show(make_table(title, columns, rows))


def show(renderable: RenderableType) -> None:
    """Print what rich can render; in a pipe without the blanks that fill up lines."""
    if sys.stdout.isatty():
        Console(markup=False, highlight=False, emoji=False).print(renderable)
        return
    console = Console(markup=False, highlight=False, emoji=False, width=_PIPE_WIDTH)
    with console.capture() as captured:
        console.print(renderable)
    for line in captured.get().splitlines():
        print(line.rstrip())


class _Table(Table):
    """A table that gives up its inner blanks before it folds words: what we show fits into 80 columns then."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.padding = _ROOMY
        wanted = Measurement.get(console, options.update(max_width=_UNBOUNDED), self).maximum
        if wanted > options.max_width:
            self.padding = _TIGHT
        return super().__rich_console__(console, options)


def make_table(title: str, columns: Sequence[tuple[str, bool]], rows: Iterable[Sequence[str]]) -> Table:
    """Return what `show_table` prints."""
    table = _Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    rows = list(rows)
    empty = [
        not heading and not any(row[index] for row in rows) for index, (heading, _) in enumerate(columns)
    ]
    for (heading, numeric), nothing in zip(columns, empty, strict=True):
        if nothing:
            continue
        table.add_column(Text(heading), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*[_cell(cell) for cell, nothing in zip(row, empty, strict=True) if not nothing])
    return table


_STYLES = {"yes": "green", "no": "bold red"}


def _cell(text: str) -> Text:
    return Text(printable(text, 200), style=_STYLES.get(text, ""))


def show_lines(title: str, lines: Iterable[str]) -> None:
    """Print a heading and lines of somebody else's text below it."""
    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
    console.print(Text(printable(title, 200), style="bold"))
    for line in lines:
        console.print(Text("  " + printable(line, 200)))


def show_json(value: object) -> None:
    """Print `value` as JSON for another program."""
    print(json.dumps(value, indent=2, ensure_ascii=True))


def complain(message: str) -> None:
    """Print one line to standard error."""
    print(message, file=sys.stderr)
