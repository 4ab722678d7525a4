"""HTTP dates (RFC 9110 section 5.6.7): written in the one form that is allowed, read in all three.

Rules:
- Names are English whatever the locale; what isn't a date that exists isn't one.
- The year of two digits that RFC 850 has is of the century that brings it no more than 50 years into the future.
- Nothing here raises: a date that isn't one is None, and a time that no HTTP date can tell is the nearest that can.
"""

from __future__ import annotations

import re
import time
from calendar import timegm
from datetime import date

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_LONG_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

#: The last second that four digits of a year can tell; file systems can hold later ones. (The first one: 1970 will
#: do, no file on the web is older.)
_LAST = 253402300799

_DAY = "|".join(_DAYS)
_MONTH = f"({'|'.join(_MONTHS)})"
_TIME = "([0-9]{2}):([0-9]{2}):([0-9]{2})"
_IMF_FIXDATE = re.compile(rf"(?:{_DAY}), ([0-9]{{2}}) {_MONTH} ([0-9]{{4}}) {_TIME} GMT".encode())
_RFC_850 = re.compile(rf"(?:{'|'.join(_LONG_DAYS)}), ([0-9]{{2}})-{_MONTH}-([0-9]{{2}}) {_TIME} GMT".encode())
_ASCTIME = re.compile(rf"(?:{_DAY}) {_MONTH} ([ 0-9][0-9]) {_TIME} ([0-9]{{4}})".encode())


def http_date(seconds: float) -> str:
    """Return an IMF-fixdate, whatever the locale."""
    t = time.gmtime(min(max(seconds, 0), _LAST))
    day = f"{_DAYS[t.tm_wday]}, {t.tm_mday:02} {_MONTHS[t.tm_mon - 1]} {t.tm_year:04}"
    return f"{day} {t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} GMT"


def parse_http_date(value: bytes) -> int | None:
    """Return the seconds since the epoch of a date in any of the three forms, None for anything else."""
    if match := _IMF_FIXDATE.fullmatch(value):
        day, month, year, hour, minute, second = match.groups()
    elif match := _ASCTIME.fullmatch(value):
        month, day, hour, minute, second, year = match.groups()
    elif match := _RFC_850.fullmatch(value):
        day, month, year, hour, minute, second = match.groups()
        this = time.gmtime().tm_year
        full = this // 100 * 100 + int(year)
        year = b"%04d" % (full - 100 if full > this + 50 else full)
    else:
        return None
    if int(hour) > 23 or int(minute) > 59 or int(second) > 60:  # 60: a leap second
        return None
    try:
        days = date(int(year), _MONTHS.index(month.decode()) + 1, int(day))
    except ValueError:
        return None
    return timegm((days.year, days.month, days.day, int(hour), int(minute), int(second), 0, 0, 0))
