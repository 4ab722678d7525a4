"""What `make bench` says of its figures: bars in the right direction, nothing left out, documents made of results."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from suite.cases import CASES, Case
from suite.figures import Bar, Figures, Limit, Row, Study
from suite.report import (
    BEGIN,
    END,
    Results,
    case_verdicts,
    differing,
    markdown,
    plots,
    publish,
    study_verdicts,
)

LOGS, NO_LOGS, ALL_CORES = "one core, access logs", "one core, no logs", "all cores, access logs"


def figures(*rate: float, p99: float = 0.0, failed: str = "") -> Figures:
    latency = {"p50": [p99 / 2], "p99": [p99], "p99.9": [2 * p99]} if p99 else {}
    return Figures([*rate], [0.01 for _ in rate], 0, 100.0 if p99 else 0.0, latency, failed)


def case(*bars: Bar) -> Case:
    return Case("it", "A case", (), bars=bars)


def results() -> Results:
    """Of every case and study that there is something."""
    first: dict[str, dict[str, Figures] | list[Row]] = {}
    for each in CASES:
        if isinstance(each, Case):
            first[each.name] = {peer.name: figures(100, 120, 90, p99=0.001) for peer in each.peers}
        else:
            rows = [
                Row("memory", "pyttpd", "MB", [1.0, 2.0], (Limit(most=4.0),)),
                Row("memory", "A & B", "MB", [3.0]),
            ]
            first[each.name] = [*rows, Row("time", "pyttpd", "s", failed="it wasn't there")]
    wsgi = first["wsgi"]
    assert isinstance(wsgi, dict)
    wsgi["waitress"] = figures(failed="waitress ended with 1")
    return Results({"processor": "one"}, {LOGS: first, NO_LOGS: {"wsgi": wsgi}, ALL_CORES: {"wsgi": wsgi}})


def test_a_bar_is_met_from_its_ratio_on_and_a_p99_up_to_it() -> None:
    found = {"pyttpd": figures(80, 100, 120, p99=0.002), "other": figures(100, 101, 99, p99=0.001)}
    for bar, met in (
        (Bar("other", 1.0), True),
        (Bar("other", 1.01), False),
        (Bar("other", 2.0, p99=True), True),
        (Bar("other", 1.9, p99=True), False),
        (Bar("pyttpd", 1.0, of="other"), True),
    ):
        (verdict,) = case_verdicts(LOGS, case(bar), found)
        assert verdict.met is met, bar


def test_a_bar_of_logs_is_read_where_it_belongs_and_none_where_all_cores_are_free() -> None:
    found = {"pyttpd": figures(1), "other": figures(1)}
    on, off, either = Bar("other", 1.0, logs=True), Bar("other", 2.0, logs=False), Bar("other", 3.0)
    wanted = {LOGS: ["1", "3"], NO_LOGS: ["2", "3"], ALL_CORES: []}
    for setting, ratios in wanted.items():
        verdicts = list(case_verdicts(setting, case(on, off, either), found))
        assert [verdict.wanted.split()[2] for verdict in verdicts] == ratios


@pytest.mark.parametrize("missing", ["pyttpd", "other"])
def test_a_bar_whose_server_was_not_measured_is_not_met(missing: str) -> None:
    found = {"pyttpd": figures(9), "other": figures(1), missing: figures(9, failed="it ended")}
    (verdict,) = case_verdicts(LOGS, case(Bar("other", 1.0)), found)
    assert not verdict.met
    assert "not measured" in verdict.row()


def test_limits_of_a_study() -> None:
    study = Study("it", "A study", lambda _: [])
    rows = [
        Row("memory", "pyttpd", "MB", [11.0, 12.0, 13.0], (Limit(most=12.0), Limit(most=11.9))),
        Row("start", "pyttpd", "s", [3.0], (Limit("bare", most=3.0), Limit("nobody", most=3.0))),
        Row("start", "bare", "s", [1.0]),
    ]
    assert [each.met for each in study_verdicts(LOGS, study, rows)] == [True, False, True, False]


def test_results_come_back_from_json_as_they_were() -> None:
    assert Results.from_json(results().to_json()) == results()


def test_the_tables_have_every_case_and_peer_and_say_who_was_not_measured() -> None:
    text = markdown(results(), "")
    for each in CASES:
        assert f"#### {each.title}\n" in text
        for name in (peer.name for peer in each.peers) if isinstance(each, Case) else ["A & B"]:
            assert f"| {name} |" in text
    assert "| waitress | not measured: waitress ended with 1 |" in text
    assert "not measured: it wasn't there" in text


def test_plots_are_whole_documents() -> None:
    found = plots(results())
    assert set(found) == {f"{each.name}.svg" for each in CASES}
    for text in found.values():
        assert len(ElementTree.fromstring(text)) > 4


def test_what_is_published_stands_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text(f"Before.\n{BEGIN}\nold\n{END}\nAfter.\n")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "gone.svg").write_text("a case that is gone")
    publish(results().to_json(), tmp_path)
    text = page.read_text()
    assert text.startswith(f"Before.\n{BEGIN}\n\n## The bars")
    assert text.endswith(f"{END}\nAfter.\n")
    assert "\nold\n" not in text
    assert not (tmp_path / "benchmarks" / "gone.svg").exists()
    assert differing(tmp_path) == []
    page.write_text(text.replace("| 100 |", "| 1,000 |"))
    assert differing(tmp_path) == ["benchmarks.md"]
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="marks"):
        publish(results().to_json(), tmp_path)


def test_the_documents_are_what_their_results_make() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    assert differing(docs) == [], "run make bench-docs"
