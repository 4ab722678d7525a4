"""HTTP dates: all three forms, and what is none."""

from __future__ import annotations

import time

import pytest

from pyttpd_vhost.http import dates
from pyttpd_vhost.http.dates import http_date, parse_http_date


@pytest.mark.parametrize("seconds", [0, 784111777, 951827696, 1763762400, 4102444799, 253402300799])
def test_dates_there_and_back(seconds: int) -> None:
    text = http_date(seconds)
    assert len(text) == 29
    assert parse_http_date(text.encode()) == seconds
    ansi = time.strftime("%a %b %e %H:%M:%S %Y", time.gmtime(seconds))
    assert parse_http_date(ansi.encode()) == seconds


def test_the_date_of_rfc_9110() -> None:
    assert http_date(784111777) == "Sun, 06 Nov 1994 08:49:37 GMT"
    for text in (
        b"Sun, 06 Nov 1994 08:49:37 GMT",
        b"Sunday, 06-Nov-94 08:49:37 GMT",
        b"Sun Nov  6 08:49:37 1994",
    ):
        assert parse_http_date(text) == 784111777


def test_times_that_no_date_can_tell() -> None:
    assert http_date(-5) == "Thu, 01 Jan 1970 00:00:00 GMT"
    assert http_date(1e30) == "Fri, 31 Dec 9999 23:59:59 GMT"


@pytest.mark.parametrize(
    ("now", "year"), [(2026, 2076), (2027, 2077), (2049, 2077), (2099, 2077), (2025, 1976)]
)
def test_two_digits_of_a_year(now: int, year: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        @staticmethod
        def gmtime() -> time.struct_time:
            return time.struct_time((now, 6, 1, 0, 0, 0, 0, 152, 0))

    monkeypatch.setattr(dates, "time", Clock)
    seconds = parse_http_date(b"Monday, 01-Jan-%02d 00:00:00 GMT" % (year % 100))
    assert seconds is not None
    assert time.gmtime(seconds).tm_year == year


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"0",
        b"784111777",
        b"Sun, 06 Nov 1994 08:49:37",
        b"Sun, 06 Nov 1994 08:49:37 UTC",
        b"Sun, 06 Nov 1994 08:49:37 GMT ",
        b"sun, 06 nov 1994 08:49:37 gmt",
        b"Sun, 00 Nov 1994 08:49:37 GMT",
        b"Sun, 31 Nov 1994 08:49:37 GMT",
        b"Sun, 29 Feb 1994 08:49:37 GMT",
        b"Sun, 06 Nov 0000 08:49:37 GMT",
        b"Sun, 06 Xxx 1994 08:49:37 GMT",
        b"Sun, 06 Nov 1994 24:49:37 GMT",
        b"Sun, 06 Nov 1994 08:60:37 GMT",
        b"Sun, 06 Nov 1994 08:49:61 GMT",
        b"Sunday, 06-Nov-1994 08:49:37 GMT",
        b"Sun, 06-Nov-94 08:49:37 GMT",
        b"Sun Nov 6 08:49:37 1994",
        b"Sun Nov 32 08:49:37 1994",
        b"Sun Nov  6 08:49:37 1994 GMT",
        b"Sun Nov  6 08:49:37 94",
        "Sun, \u0660\u0666 Nov 1994 08:49:37 GMT".encode(),
    ],
)
def test_what_is_no_date(value: bytes) -> None:
    assert parse_http_date(value) is None
