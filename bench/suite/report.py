"""What `make bench` leaves: results.json, and everything that is made from it: tables in Markdown, a plot of each
case, and the generated parts of docs/benchmarks.md and README.md.

    .venv-bench/bin/python -m suite.report [build/bench/results.json] [--incomplete]     make bench-docs

puts results into the documents: docs/benchmarks/results.json, the parts of docs/benchmarks.md and of README.md between
two marks, and the plots. Without an argument it writes them anew from docs/benchmarks/results.json. What a person
writes stands around the marks and is left alone. Results in which something is missing, as their run was stopped or
was asked for a part only, are refused without `--incomplete`. `--check` says whether the documents are what this makes
of docs/benchmarks/results.json.
"""

from __future__ import annotations

import argparse
import html
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from suite.cases import CASES, Case
from suite.figures import OURS, Figures, Limit, Row, Study

TOP = Path(__file__).resolve().parents[2]
#: In the repository: what is generated in part, and the folder that has the results and the plots.
PAGE, README, FOLDER = "docs/benchmarks.md", "README.md", "docs/benchmarks"
BEGIN = "<!-- From here to the next mark it is written by `make bench-docs`. -->"
END = "<!-- The end of what `make bench-docs` writes. -->"

#: A plot's measures, in px.
_BAR, _GAP, _LABEL, _NUMBER, _WIDTH, _TOP = 18, 5, 220, 150, 760, 34
_COLORS = {True: "#2563a8", False: "#b9c4d0"}
_INK = "#333333"


@dataclass(slots=True)
class Results:
    """What was found: by setting and case, of each peer, or a study's rows; on what; and what is missing of all that
    `make bench` measures.
    """

    about: dict[str, str]
    runs: dict[str, dict[str, dict[str, Figures] | list[Row]]]
    missing: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        runs = {
            setting: {
                name: [asdict(row) for row in found]
                if isinstance(found, list)
                else {peer: asdict(each) for peer, each in found.items()}
                for name, found in by_case.items()
            }
            for setting, by_case in self.runs.items()
        }
        return json.dumps({"about": self.about, "missing": self.missing, "results": runs}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        plain = json.loads(text)
        runs: dict[str, dict[str, dict[str, Figures] | list[Row]]] = {}
        for setting, by_case in plain["results"].items():
            runs[setting] = {}
            for name, found in by_case.items():
                if isinstance(found, dict):
                    runs[setting][name] = {peer: Figures(**each) for peer, each in found.items()}
                    continue
                runs[setting][name] = [
                    Row(**{**row, "bars": tuple(Limit(**bar) for bar in row["bars"])}) for row in found
                ]
        return cls(plain["about"], runs, plain["missing"])

    def cases(self) -> Iterator[tuple[str, Case, dict[str, Figures]]]:
        """Setting, case and figures of wrk's cases."""
        known = {case.name: case for case in CASES}
        for setting, by_case in self.runs.items():
            for name, found in by_case.items():
                case = known.get(name)
                if isinstance(case, Case) and isinstance(found, dict):
                    yield setting, case, found

    def studies(self) -> Iterator[tuple[str, Study, list[Row]]]:
        """Setting, study and rows of the others."""
        known = {case.name: case for case in CASES}
        for setting, by_case in self.runs.items():
            for name, found in by_case.items():
                case = known.get(name)
                if isinstance(case, Study) and isinstance(found, list):
                    yield setting, case, found


# ---- numbers ----------------------------------------------------------------------------------------------------


def median(values: list[float]) -> float:
    return statistics.median(values) if values else 0.0


def spread(values: list[float]) -> str:
    """Half of the distance between the least and the most, in per cent of the median."""
    middle = median(values)
    return f"± {50 * (max(values) - min(values)) / middle:.0f} %" if middle else "-"


def shown(value: float) -> str:
    """Three digits at the least, and no exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


# ---- bars -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """One bar, and what became of it. `ours` and `theirs` are what it compares, `measured` their ratio, or our figure
    if the bar names nobody; None where one of them wasn't measured. `slack` orders a case's bars: above 1 it is met.
    """

    what: str
    wanted: str
    setting: str
    ours: str
    theirs: str
    measured: float | None
    met: bool
    slack: float = 0.0

    @property
    def said(self) -> str:
        return "not measured" if self.measured is None else "met" if self.met else "**missed**"

    @property
    def ratio(self) -> str:
        return f"{self.measured:.3g}" if self.measured is not None and self.theirs else ""

    def row(self) -> str:
        cells = (self.what, self.wanted, self.setting, self.ours, self.theirs, self.ratio, self.said)
        return f"| {' | '.join(cells)} |"


def case_verdicts(setting: str, case: Case, figures: dict[str, Figures]) -> Iterator[Verdict]:
    """Bars are of servers on one core: elsewhere there are none."""
    if not setting.startswith("one core"):
        return
    logs = setting.endswith("access logs")
    for bar in case.bars:
        if bar.logs not in (None, logs) or (bar.p99 and not any(each.common for each in figures.values())):
            continue
        values = []
        for name in (bar.of, bar.against):
            one = figures.get(name, Figures(failed="it isn't there"))
            values.append(0.0 if one.failed else one.latency.get("p99", 0.0) if bar.p99 else median(one.rate))
        ratio = values[0] / values[1] if all(values) else None
        ours, theirs = (f"{1000 * value:.3g} ms" if bar.p99 else f"{value:,.0f}/s" for value in values)
        yield Verdict(
            case.title + ("" if bar.of == OURS else f" ({bar.of})"),
            str(bar),
            setting,
            ours if values[0] else "",
            theirs if values[1] else "",
            ratio,
            met=ratio is not None and bar.met(ratio),
            slack=0.0 if ratio is None else bar.ratio / ratio if bar.p99 else ratio / bar.ratio,
        )


def study_verdicts(setting: str, study: Study, rows: list[Row]) -> Iterator[Verdict]:
    """The same of a study."""
    found = {(row.figure, row.server): median(row.values) for row in rows if row.values and not row.failed}
    for row in rows:
        for bar in row.bars:
            value, base = found.get((row.figure, row.server)), found.get((row.figure, bar.against))
            ratio = value if not bar.against else value / base if value is not None and base else None
            yield Verdict(
                f"{study.title}: {row.figure}{'' if row.server == OURS else f' ({row.server})'}",
                f"{bar}{'' if bar.against else f' {row.unit}'}",
                setting,
                "" if value is None else f"{shown(value)} {row.unit}",
                "" if base is None else f"{shown(base)} {row.unit}",
                ratio,
                met=ratio is not None and bar.met(ratio),
            )


def verdicts(results: Results) -> list[Verdict]:
    """All bars, in the order of the cases."""
    found = [each for one in results.cases() for each in case_verdicts(*one)]
    return found + [each for one in results.studies() for each in study_verdicts(*one)]


def counted(all_of_them: list[Verdict]) -> str:
    """How many are met."""
    missed = sum(each.measured is not None and not each.met for each in all_of_them)
    unknown = sum(each.measured is None for each in all_of_them)
    end = f", {unknown} not measured" if unknown else ""
    return f"{sum(each.met for each in all_of_them)} met, {missed} missed{end}"


def bars_table(results: Results) -> list[str]:
    """All bars, by what they are of."""
    found = sorted(verdicts(results), key=lambda each: each.what)
    return [
        f"{counted(found)}.",
        "",
        "| what | wanted | setting | pyttpd | the peer | measured | |",
        "| --- | --- | --- | ---: | ---: | ---: | --- |",
        *(each.row() for each in found),
        "",
    ]


def whence(results: Results) -> str:
    """Of which commit, machine and load the figures are."""
    about = results.about
    text = (
        f"Measured at commit {about['commit']} on {about['day']}: {about['processor']}, {about['cores']} cores, Linux "
        f"{about['kernel']}, Python {about['python']}; the load before was {about['load before']}, and others used "
        f"{about['used by others meanwhile']} meanwhile."
    )
    if results.missing:
        count = len(results.missing)
        text += f" **The run is incomplete:** {count} part{'s' * (count > 1)} of `make bench` missing."
    return text


def readme(results: Results) -> str:
    """The bars alone, each once: where it is read with access logs and without, the worse of both."""
    shortest: dict[tuple[str, str], Verdict] = {}
    for each in verdicts(results):
        kept = shortest.setdefault((each.what, each.wanted), each)
        if each.slack < kept.slack:
            shortest[each.what, each.wanted] = each
    lines = [whence(results), "", f"{counted([*shortest.values()])}:", ""]
    lines += ["| what | pyttpd | the peer | ratio | wanted | |", "| --- | ---: | ---: | ---: | --- | --- |"]
    for each in shortest.values():
        where = ", no logs" if each.setting.endswith("no logs") else ""
        cells = (each.what + where, each.ours, each.theirs, each.ratio, each.wanted, each.said)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


# ---- tables -----------------------------------------------------------------------------------------------------


def case_table(figures: dict[str, Figures]) -> list[str]:
    """A case: every figure beside our ratio to it."""
    ours = median(figures[OURS].rate) if OURS in figures else 0.0
    lines = [
        "| server | requests/s | spread | pyttpd has | CPU s per 1,000 | errors |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, each in sorted(figures.items(), key=lambda item: -median(item[1].rate)):
        if each.failed or not each.rate:
            lines.append(f"| {name} | not measured: {each.failed[:200] or 'nothing'} | | | | |")
            continue
        rate = median(each.rate)
        ratio = f"{ours / rate:.2f} x" if ours and name != OURS else ""
        lines.append(
            f"| {name} | {rate:,.0f} | {spread(each.rate)} | {ratio} | {median(each.cost):.4f} | {each.errors} |"
        )
    timed = {name: each for name, each in figures.items() if each.latency and not each.failed}
    if timed:
        rate = next(iter(timed.values())).common
        lines += [
            "",
            f"At {rate:,.0f} requests/s for all (half of the slowest one's most), milliseconds:",
            "",
            "| server | p50 | p99 | pyttpd has | each round's p99: median | spread | p99.9 |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        base = timed[OURS].latency["p99"] if OURS in timed else 0.0
        for name, each in sorted(timed.items(), key=lambda item: item[1].latency["p99"]):
            p50, p99, p999 = (1000 * each.latency[key] for key in ("p50", "p99", "p99.9"))
            ratio = f"{1000 * base / p99:.2f} x" if base and name != OURS else ""
            rounds = f"{1000 * median(each.p99):.2f} | {spread(each.p99)}"
            lines.append(f"| {name} | {p50:.2f} | {p99:.2f} | {ratio} | {rounds} | {p999:.2f} |")
    return [*lines, ""]


def study_table(rows: list[Row]) -> list[str]:
    """A study: a figure's servers stand below each other, with our ratio to each."""
    lines = [
        "| figure | server | median | spread | pyttpd has |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    found = {(row.figure, row.server): median(row.values) for row in rows if row.values}
    for row in rows:
        if row.failed or not row.values:
            lines.append(
                f"| {row.figure} | {row.server} | not measured: {row.failed[:200] or 'nothing'} | | |"
            )
            continue
        value, ours = median(row.values), found.get((row.figure, OURS))
        ratio = f"{ours / value:.2f} x" if ours is not None and row.server != OURS and value else ""
        lines.append(
            f"| {row.figure} | {row.server} | {shown(value)} {row.unit} | {spread(row.values)} | {ratio} |"
        )
    return [*lines, ""]


def markdown(results: Results, folder: str) -> str:
    """All of it; plots are in `folder`."""
    lines = ["## The bars", "", whence(results), "", *bars_table(results), "## What was found", ""]
    lines += ["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in results.about.items())]
    lines += [*(f"| missing | {part} |" for part in results.missing), ""]
    drawn = set()
    for setting in results.runs:
        lines += [f"### {setting[0].upper()}{setting[1:]}", ""]
        for where, case, figures in results.cases():
            if where == setting:
                lines += [f"#### {case.title}", "", *case_table(figures)]
                if case.name not in drawn:
                    drawn.add(case.name)
                    lines += [f"![{case.title}]({folder}{case.name}.svg)", ""]
        for where, study, rows in results.studies():
            if where == setting:
                lines += [f"#### {study.title}", "", *study_table(rows)]
                if any(len(block.rows) > 1 for block in study_blocks(rows)):
                    lines += [f"![{study.title}]({folder}{study.name}.svg)", ""]
    return "\n".join(lines)


# ---- plots ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Block:
    """Bars that can be compared with each other: a name, and what each round had."""

    title: str
    rows: list[tuple[str, list[float]]]


def case_blocks(results: Results, case: Case) -> list[Block]:
    """Requests/s, a block for each setting."""
    return [
        Block(
            f"requests/s; {setting}",
            sorted(
                ((name, each.rate) for name, each in figures.items() if each.rate and not each.failed),
                key=lambda row: -median(row[1]),
            ),
        )
        for setting, of, figures in results.cases()
        if of.name == case.name
    ]


def study_blocks(rows: list[Row]) -> list[Block]:
    """A block for each figure."""
    blocks: dict[str, Block] = {}
    for row in rows:
        if row.values and not row.failed:
            block = blocks.setdefault(row.figure, Block(f"{row.figure}, {row.unit}", []))
            block.rows.append((row.server, row.values))
    return list(blocks.values())


def plot(title: str, blocks: list[Block]) -> str:
    """Bars as SVG, each with a line from its least round to its most."""
    parts, y = [], _TOP
    for block in blocks:
        parts.append(f'<text x="8" y="{y + 14}" font-style="italic">{html.escape(block.title)}</text>')
        y += 22
        most = max((max(values) for _, values in block.rows), default=0.0) or 1.0
        scale = (_WIDTH - _LABEL - _NUMBER) / most
        for name, values in block.rows:
            middle, color = y + _BAR / 2, _COLORS[name.startswith(OURS)]
            least, value, top = (_LABEL + each * scale for each in (min(values), median(values), max(values)))
            parts += [
                f'<text x="{_LABEL - 8}" y="{y + 14}" text-anchor="end">{html.escape(name)}</text>',
                f'<rect x="{_LABEL}" y="{y}" width="{value - _LABEL:.1f}" height="{_BAR}" fill="{color}"/>',
                f'<path d="M{least:.1f} {middle}H{top:.1f}" stroke="{_INK}"/>',
                f'<text x="{top + 6:.1f}" y="{y + 14}">{shown(median(values))}</text>',
            ]
            y += _BAR + _GAP
        y += 10
    form = f'width="{_WIDTH}" height="{y}" font-family="sans-serif" font-size="13" fill="{_INK}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {form}>',
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            f'<text x="8" y="20" font-weight="bold">{html.escape(title)}</text>',
            *parts,
            "</svg>",
            "",
        ]
    )


def plots(results: Results) -> dict[str, str]:
    """A plot of each case, by its file's name."""
    found = {}
    for _, case, _ in results.cases():
        found[f"{case.name}.svg"] = plot(case.title, case_blocks(results, case))
    for _, study, rows in results.studies():
        if blocks := [block for block in study_blocks(rows) if len(block.rows) > 1]:
            found[f"{study.name}.svg"] = plot(study.title, blocks)
    return found


# ---- files ------------------------------------------------------------------------------------------------------


def write(folder: Path, results: Results) -> None:
    """Write results.json, tables.md and the plots."""
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / "results.json.new"
    new.write_text(results.to_json())
    new.replace(folder / "results.json")  # a run may be stopped while it writes
    (folder / "tables.md").write_text(markdown(results, ""))
    for name, text in plots(results).items():
        (folder / name).write_text(text)


def filled(path: Path, text: str) -> str:
    """The document at `path`, with `text` between its marks."""
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{path}: the marks of its generated part are missing: {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{text}\n{END}{after}"


def publish(text: str, top: Path) -> None:
    """Put results.json's `text` into the documents of the repository at `top`; plots of cases that are gone go."""
    results, folder = Results.from_json(text), top / FOLDER
    page, start = filled(top / PAGE, markdown(results, "benchmarks/")), filled(top / README, readme(results))
    (top / PAGE).write_text(page)
    (top / README).write_text(start)
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    for name, drawing in plots(results).items():
        (folder / name).write_text(drawing)
    (folder / "results.json").write_text(results.to_json())


def contents(top: Path) -> dict[str, str]:
    """What `publish` writes, as it is."""
    files = [top / PAGE, top / README, *sorted((top / FOLDER).glob("*"))]
    return {str(path.relative_to(top)): path.read_text() for path in files if path.is_file()}


def differing(top: Path) -> list[str]:
    """Which documents aren't what `publish` makes of their results."""
    there = contents(top)
    with tempfile.TemporaryDirectory() as name:
        other = Path(name)
        (other / FOLDER).mkdir(parents=True)
        for each in (PAGE, README):
            (other / each).write_text(there[each])
        publish(there[f"{FOLDER}/results.json"], other)
        made = contents(other)
    return sorted(path for path in {*there, *made} if there.get(path) != made.get(path))


def main() -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="?", type=Path)
    parser.add_argument("--top", type=Path, default=TOP, help="the repository")
    parser.add_argument("--incomplete", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.check:
        wrong = differing(options.top)
        if wrong:
            print(f"not what their results make: {', '.join(wrong)}: run make bench-docs", file=sys.stderr)
        return bool(wrong)
    text = (options.results or options.top / FOLDER / "results.json").read_text()
    if options.results and not options.incomplete and (missing := Results.from_json(text).missing):
        told = "the run is incomplete (`make bench-docs INCOMPLETE=1` takes it even so); it lacks:"
        print(f"{options.results}: {told}", *missing, sep="\n    ", file=sys.stderr)
        return 1
    publish(text, options.top)
    return 0


if __name__ == "__main__":
    sys.exit(main())
