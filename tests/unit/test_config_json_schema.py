"""The JSON schema for editors: it is the schema's, it is valid, and what the loader accepts is valid in it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from pyttpd.config.json_schema import document, json_schema
from pyttpd.config.keys import REQUIRED, Kind
from pyttpd.config.schema import SCHEMA

from .test_config_load import FULL, SHOP

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "golden" / "check"
FILE = ROOT / "docs" / "pyttpd.schema.json"
VALIDATOR = Draft202012Validator(json_schema())

#: Of the broken files, what a schema can't see: syntax, what values mean, and what tables must agree on.
BEYOND = {
    *("05-nothing-in-it", "12-ports-that-clash", "14-one-name-for-two", "21-two-defaults"),
    *("24-a-file-that-is-not-there", "30-kept"),
}


def test_the_file_is_the_schema_s() -> None:
    assert FILE.read_text() == document(), "run: make docs"
    assert json.loads(document()) == json_schema()


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(json_schema())


def test_it_has_every_key_with_its_sentence() -> None:
    text = document()
    for _, table in SCHEMA.walk():
        for key in table.keys:
            assert json.dumps(key.doc, ensure_ascii=False)[1:-1] in text, key.name
            if key.default is REQUIRED:
                assert f'"{key.name}"' in text
    assert {key.kind for _, table in SCHEMA.walk() for key in table.keys} <= set(Kind)


def configurations() -> list[Any]:
    """Return every configuration of the repository that is meant to be valid, the documents' among them."""
    found = [pytest.param(FULL, id="full"), pytest.param(SHOP, id="shop")]
    for path in sorted((ROOT / "examples").rglob("*.toml")):
        text = path.read_text()
        if "[vhost." in text or "[listen." in text:
            found.append(pytest.param(text, id=str(path.relative_to(ROOT))))
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for number, block in enumerate(path.read_text().split("```toml\n")[1:]):
            text = block.partition("```")[0]
            if "[vhost." in text and "\n..." not in text:
                found.append(pytest.param(text, id=f"{path.name}-{number}"))
    return found


@pytest.mark.parametrize("text", configurations())
def test_what_is_valid(text: str) -> None:
    errors = [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(tomllib.loads(text))]
    # A document may show a part of a table.
    assert [error for error in errors if "is a required property" not in error] == []


@pytest.mark.parametrize("name", [each.stem for each in sorted(FOLDER.glob("*.toml"))])
def test_what_is_broken(name: str) -> None:
    try:
        data = tomllib.loads((FOLDER / f"{name}.toml").read_text())
    except ValueError:
        return  # no TOML: every editor says so
    assert VALIDATOR.is_valid(data) == (name in BEYOND)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("gracious = 1", "gracious"),
        ("[vhost.blog]\nuid = 20001\nkind = 'static'\nroot = '/a'\nhsts = []", "hsts"),
        ("[vhost.blog]\nuid = 1\nkind = 'static'\nroot = '/a'", "minimum"),
        ("[vhost.blog]\nuid = 20001\nkind = 'static'", "root"),
        ("[vhost.Blog]\nuid = 20001\nkind = 'static'\nroot = '/a'", "Blog"),
        ("[listen.metrics]\naddress = '0.0.0.0:80'", "metrics"),
        ("[log]\nlevel = 'loud'", "loud"),
        ("include = 3", "include"),
    ],
)
def test_what_an_editor_would_mark(text: str, where: str) -> None:
    errors = [f"{error.json_path} {error.message}" for error in VALIDATOR.iter_errors(tomllib.loads(text))]
    assert len(errors) == 1
    assert where in errors[0]
