"""What `make bench` leaves: results as JSON, docs/benchmarks.md's tables, and a plot of each case."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from suite.cases import Case, Figures
from suite.figures import OURS, Row, Study

#: What was found: by setting and case, of each peer, or a study's rows.
Runs = dict[str, dict[str, dict[str, Figures] | list[Row]]]

#: A plot's measures, in px.
_BAR, _GAP, _LABEL, _WIDTH = 22, 8, 190, 720
_OURS, _OTHERS, _INK = "#2563a8", "#b9c4d0", "#333333"


def median(values: list[float]) -> float:
    return statistics.median(values) if values else 0.0


def spread(values: list[float]) -> str:
    """Half of the distance between the least and the most, in per cent of the median."""
    middle = median(values)
    return f"± {50 * (max(values) - min(values)) / middle:.0f} %" if middle else "-"


def ratios(results: dict[str, Figures], of: str, against: str) -> float | None:
    """The median of `of` by that of `against`; None if one of them wasn't measured."""
    below = median(results[against].rate) if against in results else 0.0
    return median(results[of].rate) / below if below and of in results else None


def table(case: Case, results: dict[str, Figures]) -> str:
    """A case as Markdown: every figure beside its ratio to ours."""
    ours = median(results["pyttpd"].rate)
    lines = [
        f"### {case.title}",
        "",
        "| server | requests/s | spread | pyttpd has | ms of processor per 1,000 | errors |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, figures in sorted(results.items(), key=lambda item: -median(item[1].rate)):
        if figures.failed:
            lines.append(f"| {name} | not measured: {figures.failed} | | | | |")
            continue
        rate = median(figures.rate)
        ratio = "" if name == "pyttpd" else f"{ours / rate:.2f} x" if rate else "-"
        lines.append(
            f"| {name} | {rate:,.0f} | {spread(figures.rate)} | {ratio} | {1000 * median(figures.cost):.1f} | "
            f"{figures.errors} |"
        )
    for bar in case.bars:
        found = ratios(results, bar.of, bar.against)
        if found is not None:
            verdict = "met" if found >= bar.ratio else "**missed**"
            lines += ["", f"Bar: {bar.ratio:g} x {bar.against}: {found:.2f}, {verdict}."]
    latencies = {name: figures.latency for name, figures in results.items() if figures.latency}
    if latencies:
        rate = next(iter(latencies.values()))["rate"]
        lines += [
            "",
            f"At {rate:,.0f} requests/s for all (half of the slowest one's most):",
            "",
            "| server | p50 | p99 | p99.9 |",
            "| --- | ---: | ---: | ---: |",
        ]
        for name, found_ in sorted(latencies.items(), key=lambda item: item[1]["p99"]):
            cells = " | ".join(f"{1000 * found_[key]:.2f} ms" for key in ("p50", "p99", "p99.9"))
            lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"


def shown(value: float) -> str:
    """Three digits at the least, and no exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def study_table(study: Study, rows: list[Row]) -> str:
    """A study as Markdown: a figure's servers stand below each other, with our ratio to each."""
    lines = [
        f"### {study.title}",
        "",
        "| figure | server | median | spread | pyttpd has |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    found = {(row.figure, row.server): median(row.values) for row in rows if row.values}
    bars = []
    for row in rows:
        if row.failed or not row.values:
            lines.append(f"| {row.figure} | {row.server} | not measured: {row.failed or 'nothing'} | | |")
            continue
        value, ours = median(row.values), found.get((row.figure, OURS))
        ratio = f"{ours / value:.2f} x" if ours is not None and row.server != OURS and value else ""
        lines.append(
            f"| {row.figure} | {row.server} | {shown(value)} {row.unit} | {spread(row.values)} | {ratio} |"
        )
        for bar in row.bars:
            base = found.get((row.figure, bar.against)) if bar.against else 1.0
            if not base:
                bars.append(f"Bar: {row.figure}, {row.server}: {bar}: not measured.")
                continue
            verdict = "met" if bar.met(value / base) else "**missed**"
            bars.append(f"Bar: {row.figure}, {row.server}: {bar}: {shown(value / base)}, {verdict}.")
    for line in bars:
        lines += ["", line]
    return "\n".join(lines) + "\n"


def plot(case: Case, results: dict[str, Figures]) -> str:
    """A case as SVG: a bar for each peer."""
    rows = sorted(
        ((name, median(each.rate)) for name, each in results.items() if each.rate), key=lambda row: -row[1]
    )
    most = max((rate for _, rate in rows), default=1.0)
    height = len(rows) * (_BAR + _GAP) + 40
    form = f'width="{_WIDTH}" height="{height}" font-family="sans-serif" font-size="13" fill="{_INK}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {form}><rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="8" y="20" font-weight="bold">{case.title}: requests/s</text>',
    ]
    for number, (name, rate) in enumerate(rows):
        y = 34 + number * (_BAR + _GAP)
        width = round((_WIDTH - _LABEL - 90) * rate / most)
        color = _OURS if name == "pyttpd" else _OTHERS
        parts += [
            f'<text x="{_LABEL - 8}" y="{y + 16}" text-anchor="end">{name}</text>',
            f'<rect x="{_LABEL}" y="{y}" width="{width}" height="{_BAR}" fill="{color}"/>',
            f'<text x="{_LABEL + width + 6}" y="{y + 16}">{rate:,.0f}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def write(folder: Path, runs: Runs, cases: Mapping[str, Case | Study], about: dict[str, str]) -> None:
    """Write results.json, tables.md and a plot of each of wrk's cases into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {
        setting: {
            name: [asdict(row) for row in found]
            if isinstance(found, list)
            else {peer: asdict(each) for peer, each in found.items()}
            for name, found in by_case.items()
        }
        for setting, by_case in runs.items()
    }
    (folder / "results.json").write_text(json.dumps({"about": about, "results": plain}, indent=1) + "\n")
    lines = ["## On what", "", *(f"- {key}: {value}" for key, value in about.items()), ""]
    for setting, by_case in runs.items():
        lines += [f"## {setting}", ""]
        for name, found in by_case.items():
            case = cases[name]
            if isinstance(case, Study):
                assert isinstance(found, list)
                lines.append(study_table(case, found))
                continue
            assert isinstance(found, dict)
            if OURS in found:
                lines.append(table(case, found))
            drawing = folder / f"{name}-{setting.replace(' ', '-').replace(',', '')}.svg"
            drawing.write_text(plot(case, found))
    (folder / "tables.md").write_text("\n".join(lines))
