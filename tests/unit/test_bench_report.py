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
    FOLDER,
    PAGE,
    README,
    TOP,
    Results,
    case_verdicts,
    contents,
    differing,
    main,
    markdown,
    plots,
    publish,
    readme,
    study_verdicts,
)

LOGS, NO_LOGS, ALL_CORES = "one core, access logs", "one core, no logs", "all cores, access logs"


def figures(*rate: float, p99: float = 0.0, failed: str = "") -> Figures:
    latency = {"p50": p99 / 2, "p99": p99, "p99.9": 2 * p99} if p99 else {}
    rounds = [p99] if p99 else []
    return Figures([*rate], [0.01 for _ in rate], 0, 100.0 if p99 else 0.0, latency, rounds, failed)


def case(*bars: Bar) -> Case:
    return Case("it", "A case", "it", (), bars=bars)


ABOUT = {
    "commit": "0123456789ab",
    "day": "1 May 2026",
    "processor": "one",
    "cores": "2",
    "kernel": "6.1",
    "python": "3.11.2",
    "load before": "0.10",
    "used by others meanwhile": "1.0%",
}


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
    return Results(ABOUT, {LOGS: first, NO_LOGS: {"wsgi": wsgi}, ALL_CORES: {"wsgi": wsgi}})


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


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A repository with documents that have marks."""
    (tmp_path / FOLDER).mkdir(parents=True)
    for each in (PAGE, README):
        (tmp_path / each).write_text(f"Before.\n{BEGIN}\nold\n{END}\nAfter.\n")
    (tmp_path / FOLDER / "gone.svg").write_text("a case that is gone")
    return tmp_path


def test_what_is_published_stands_between_the_marks(top: Path) -> None:
    publish(results().to_json(), top)
    page, start = (top / PAGE).read_text(), (top / README).read_text()
    assert page.startswith(f"Before.\n{BEGIN}\n\n## The bars")
    assert start.startswith(f"Before.\n{BEGIN}\n\nMeasured at commit 0123456789ab")
    for text in (page, start):
        assert text.endswith(f"{END}\nAfter.\n")
        assert "\nold\n" not in text
    assert not (top / FOLDER / "gone.svg").exists()
    assert differing(top) == []
    for path, text, part in ((PAGE, page, "| 100 |"), (README, start, "100/s")):
        (top / path).write_text(text.replace(part, "9"))
        assert differing(top) == [path]
        (top / path).write_text(text)


@pytest.mark.parametrize("path", [PAGE, README])
def test_a_document_without_marks_is_left_alone_and_so_are_the_others(top: Path, path: str) -> None:
    (top / path).write_text("no marks")
    before = contents(top)
    with pytest.raises(SystemExit, match="marks"):
        publish(results().to_json(), top)
    assert contents(top) == before


def test_incomplete_results_are_refused_unless_asked_for(
    top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    part = results()
    part.missing = ["locks (one core, access logs)"]
    file = tmp_path / "results.json"
    file.write_text(part.to_json())
    before = contents(top)
    monkeypatch.setattr("sys.argv", ["report", str(file), "--top", str(top)])
    assert main() == 1
    assert "locks (one core, access logs)" in capsys.readouterr().err
    assert contents(top) == before
    monkeypatch.setattr("sys.argv", ["report", str(file), "--top", str(top), "--incomplete"])
    assert main() == 0
    for each in (PAGE, README):
        assert "**The run is incomplete:** 1 part" in (top / each).read_text()
    assert "| missing | locks (one core, access logs) |" in (top / PAGE).read_text()


def test_the_readme_has_each_bar_once_where_it_is_worse() -> None:
    bar = Bar("nginx", 0.9)
    ((name, known),) = [(each.name, each) for each in CASES if each.name == "static-1k"]
    assert isinstance(known, Case)
    assert bar in known.bars
    runs: dict[str, dict[str, dict[str, Figures] | list[Row]]] = {
        LOGS: {name: {"pyttpd": figures(100), "nginx": figures(50)}},
        NO_LOGS: {name: {"pyttpd": figures(80), "nginx": figures(100)}},
    }
    lines = [line for line in readme(Results(ABOUT, runs)).splitlines() if "at least 0.9 x nginx |" in line]
    assert lines == [f"| {known.title}, no logs | 80/s | 100/s | 0.8 | at least 0.9 x nginx | **missed** |"]


def test_the_documents_are_what_their_results_make() -> None:
    assert differing(TOP) == [], "run make bench-docs"
