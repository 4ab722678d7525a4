"""Log lines: one event a line, whatever a client or tenant has put into it, and not too many of them."""

from __future__ import annotations

import json
import os
import re
import time

import pytest

from pyttpd.log import MAX_OUTPUT, MAX_REPEATED, MAX_VALUE, Log, printable


class Lines(list[str]):
    def __call__(self, line: bytes) -> None:
        assert line.endswith(b"\n")
        self.append(line.decode().removesuffix("\n"))


@pytest.fixture
def lines() -> Lines:
    return Lines()


def test_a_line_says_when_who_how_bad_and_what(lines: Lines) -> None:
    Log("vhost", "blog", write=lines).info("taken", id=7, host="a.example")
    assert re.fullmatch(
        rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{3}}Z vhost\.blog\[{os.getpid()}\] info: taken id=7 host=a\.example",
        lines[0],
    )


def test_what_is_below_the_level_is_not_said(lines: Lines) -> None:
    log = Log("init", write=lines)
    log.level = "warning"
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    assert [line.split("] ")[1] for line in lines] == ["warning: c", "error: d"]


def test_as_json_numbers_stay_numbers(lines: Lines) -> None:
    log = Log("umaster", write=lines)
    log.format = "json"
    log.warning("refused", id=7, reason="queue\nfull")
    found = json.loads(lines[0])
    assert found.pop("time").endswith("Z")
    assert found.pop("pid") == os.getpid()
    assert found == {
        "level": "warning", "role": "umaster", "name": "", "event": "refused", "id": 7, "reason": "queue\\x0afull"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"error": ValueError('a "quote" and \x1b[2J')}, {"error": 'a "quote" and \\x1b[2J'}),
        (
            {"seconds": float("nan"), "rate": float("inf"), "flag": True},
            {"seconds": "nan", "rate": "inf", "flag": True},
        ),
        ({"name": "blog", "role": "vhost", "pid": 3}, {"name_": "blog", "role_": "vhost", "pid_": 3}),
        (
            {"traceback": 'Traceback:\n  File "a"\x1b\nError: \u2028'},
            {"traceback": 'Traceback:\n  File "a"\\x1b\nError: '},
        ),
        ({"text": "x" * 1000}, {"text": "x" * MAX_VALUE + "..."}),
        ({"text": "\udcff\ud800"}, {"text": "\\udcff\\ud800"}),
    ],
)
def test_json_is_json_whatever_is_in_it(
    fields: dict[str, object], shown: dict[str, object], lines: Lines
) -> None:
    log = Log("umaster", write=lines)
    log.format = "json"
    log.error("failed", **fields)
    assert "\n" not in lines[0]
    found = json.loads(lines[0], parse_constant=pytest.fail)
    assert (found["role"], found["name"], found["event"], found["level"]) == (
        "umaster",
        "",
        "failed",
        "error",
    )
    assert {key: found[key] for key in shown} == shown


def test_what_is_printed_is_whole_in_json_too(lines: Lines) -> None:
    log = Log("vhost", "blog", write=lines)
    log.format = "json"
    log.output("x" * MAX_OUTPUT)
    assert json.loads(lines[0])["line"] == "x" * MAX_OUTPUT


def test_a_tab_in_what_is_printed_is_a_blank(lines: Lines) -> None:
    log = Log("vhost", "blog", write=lines)
    log.output("\tis it running?\x1b[2J")
    assert lines[0].endswith("info: output  is it running?\\x1b[2J")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("", '""'),
        ("two words", '"two words"'),
        ('a="b"', '"a=\\"b\\""'),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("a\nerror: forged", '"a\\\\x0aerror: forged"'),
        ("\u202egnp", "\\u202egnp"),
        (b"bytes\x00", "b'bytes\\x00'"),
    ],
)
def test_a_value_cannot_forge_a_line_or_move_a_cursor(lines: Lines, value: object, shown: str) -> None:
    Log("listener", write=lines).info("said", value=value)
    assert len(lines) == 1
    assert lines[0].endswith(f"said value={shown}")


def test_a_long_value_is_cut() -> None:
    assert printable("x" * MAX_VALUE) == "x" * MAX_VALUE
    assert printable("x" * (MAX_VALUE + 1)) == "x" * MAX_VALUE + "..."


def test_repetitions_are_counted_and_told(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    log = Log("listener", write=lines)
    for _ in range(MAX_REPEATED + 5):
        log.info("flood")
    assert len(lines) == MAX_REPEATED
    now += 1
    log.info("calm")
    assert lines[-2].endswith("warning: flood suppressed=5")
    assert lines[-1].endswith("info: calm")


def test_a_log_that_is_gone_ends_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", gone)
    Log("init").error("said to nobody")


def test_a_traceback_is_told_in_lines_of_its_own(lines: Lines) -> None:
    Log("vhost", write=lines).error("ended", traceback="first\nsec\x1bond")
    assert lines[0].split("] ")[1] == "error: ended\n    | first\n    | sec\\x1bond"
