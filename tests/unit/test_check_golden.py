"""`pyttpd check` on broken configurations, beside each what it says: tests/golden/check.

To write what it says now, and look at the difference before it is committed:

    GOLDEN=write make test ONLY="tests/unit/test_check_golden.py -q"
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyttpd_ctl import main

FOLDER = Path(__file__).parents[1] / "golden" / "check"
CASES = sorted(each.name for each in FOLDER.iterdir() if each.suffix != ".txt")


def said(name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    """Return what the command says of the case, which must be wrong."""
    monkeypatch.chdir(FOLDER)
    monkeypatch.setattr(sys, "argv", ["pyttpd", "check", "--no-files", name])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1
    out, err = capfd.readouterr()
    assert out == ""
    return err


@pytest.mark.parametrize("name", CASES)
def test_what_it_says(name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    expected = FOLDER / f"{name.removesuffix('.toml')}.txt"
    text = said(name, monkeypatch, capfd)
    if os.environ.get("GOLDEN") == "write":
        expected.write_text(text)
    assert text == expected.read_text()
    *lines, last = text.splitlines()
    assert last == f"{name}: not valid: {len(lines)} error{'s' * (len(lines) != 1)}"
    for line in lines:
        assert line.startswith(name)
        assert line.isprintable()
        assert "Error" not in line  # words for people, not for programmers
        assert "None" not in line


def test_there_are_enough_and_none_is_left_over() -> None:
    assert len(CASES) >= 20
    assert {each.stem for each in FOLDER.glob("*.txt")} == {name.removesuffix(".toml") for name in CASES}


def test_the_command_itself(tmp_path: Path) -> None:
    """Once as a person would: another process, from another folder."""
    file = FOLDER / "14-one-name-for-two.toml"
    command = [sys.executable, "-I", "-m", "pyttpd_ctl", "check", "--no-files", str(file)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.replace(f"{FOLDER}/", "") == file.with_suffix(".txt").read_text()
