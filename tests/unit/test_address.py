"""Addresses as the configuration and command lines write them."""

from __future__ import annotations

import socket

import pytest

from pyttpd.address import Address, normal_ip, parse, unreachable


@pytest.mark.parametrize(
    ("text", "address", "family"),
    [
        ("192.0.2.1:80", Address("192.0.2.1", 80), socket.AF_INET),
        ("[2001:DB8::0:1]:65535", Address("2001:db8::1", 65535), socket.AF_INET6),
    ],
)
def test_parse_and_print(text: str, address: Address, family: int) -> None:
    assert parse(text) == address
    assert address.family == family
    assert parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ":80",
            "192.0.2.1",
            "192.0.2.1:",
            "192.0.2.1:0",
            "192.0.2.1:65536",
            "192.0.2.1:+80",
            "192.0.2.1:000080",
        ),
        *(
            "[192.0.2.1]:80",
            "2001:db8::1:80",
            "[2001:db8::1]",
            "[fe80::1%lo]:80",
            "db:5432",
            "192.0.2.1:\uff18\uff10",
        ),
    ],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="port"):
        parse(text)


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("10.5.0.2", None),
        ("127.0.0.1", None),
        ("::1", None),
        ("fd00::2", None),
        ("0.0.0.0", "every"),
        ("::", "every"),
        ("224.0.0.1", "many"),
        ("255.255.255.255", "many"),
        ("ff02::1", "many"),
        ("::ffff:a05:2", '"10.5.0.2"'),
        ("fe80::1", "interface"),
    ],
)
def test_to_whom_one_can_connect(host: str, why: str | None) -> None:
    assert normal_ip(host) is not None
    found = unreachable(host)
    assert (found is None) if why is None else (found is not None and why in found)
