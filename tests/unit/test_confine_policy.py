"""What policies say, and what they don't accept."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from pyttpd.address import Address
from pyttpd.confine import Policy, landlock, python_paths, role_policy, tenant_policy
from pyttpd.confine.landlock import Fs


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"read": ("relative",)}, "absolute"),
        ({"write": ("/a\0b",)}, "absolute"),
        ({"read": ("/",)}, "confines nothing"),
        ({"write": ("/tmp/..",)}, "confines nothing"),
        ({"execute": ("/bin",)}, "must allow to run"),
        ({"connects_late": True}, "must let it connect"),
        ({"reach": (Address("127.0.0.1", 1),)}, "must allow to connect"),
    ],
)
def test_what_no_policy_can_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Policy(**fields)


def test_python_finds_what_it_imports_late() -> None:
    paths = python_paths()
    assert sys.prefix in paths
    assert any(os.__file__.startswith(f"{path}/") for path in paths)
    assert not {"/", "/tmp", "/home"} & set(paths)


def test_a_directory_that_is_on_the_path_by_accident_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", "relative", "/tmp", "/nowhere/at/all", *sys.path])
    assert not {"/tmp", "/nowhere/at/all", ""} & set(python_paths())


def test_a_role_runs_and_forks_nothing() -> None:
    policy = role_policy(read=("/etc/pyttpd",))
    assert not policy.allow_exec
    assert not policy.allow_fork
    assert not policy.allow_bind
    assert not policy.dumpable
    assert policy.connects_late
    assert "/etc/pyttpd" in policy.read
    assert policy.write == ("/dev/null",)


def test_a_tenant_sees_its_own() -> None:
    policy = tenant_policy(
        "/srv/blog", python_path=("/srv/lib",), writable=("/srv/blog/up",), shared_memory=None
    )
    assert "/srv/blog" in policy.execute
    assert "/srv/lib" in policy.execute
    assert policy.write == ("/dev/null", "/srv/blog/up", "/tmp")
    everything = (*policy.read, *policy.write, *policy.execute)
    assert not [path for path in everything if path.startswith(("/proc", "/sys", "/run")) or path == "/etc"]


@pytest.mark.parametrize(
    ("abi", "length", "highest"),
    [
        (1, 8, Fs.MAKE_SYM),
        (2, 8, Fs.REFER),
        (3, 8, Fs.TRUNCATE),
        (4, 16, Fs.TRUNCATE),
        (5, 16, Fs.IOCTL_DEV),
        (6, 24, Fs.IOCTL_DEV),
        (7, 24, Fs.IOCTL_DEV),
    ],
)
def test_a_ruleset_names_what_its_kernel_knows(abi: int, length: int, highest: Fs) -> None:
    assert len(landlock.ruleset_attr(abi)) == length
    assert landlock.handled_fs(abi) == Fs(2 * highest - 1)


def test_nobody_gets_device_nodes() -> None:
    for rights in (landlock.READ, landlock.RUN, landlock.WRITE):
        assert not rights & (Fs.MAKE_CHAR | Fs.MAKE_BLOCK | Fs.IOCTL_DEV)
