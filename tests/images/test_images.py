"""Each image, from outside: who runs in it, what is in it, and above all what is not."""

from __future__ import annotations

import platform
import subprocess

import pytest

from pyttpd import __version__
from pyttpd.roles import ROLES, Role

from support.images import IMAGES, SITE, Image, load, locked
from support.native import compiled

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

TAG = "test"
#: What the issue allows, unpacked; and a tenant's programs beside it: perl-base, PHP with the modules of php-common.
MOST_BYTES = 60_000_000
PROGRAMS_BYTES = {"pyttpd-vhost-cgi": 15_000_000, "pyttpd-vhost-fastcgi": 40_000_000}
#: The programs that an image has beside Python, and nobody else has.
PROGRAMS = {
    "pyttpd-master": {"usr/bin/pyttpd"},
    "pyttpd-vhost-cgi": {"usr/bin/perl"},
    "pyttpd-vhost-fastcgi": {"usr/bin/php-cgi"},
}
SHELLS = {"sh", "bash", "dash", "ash", "busybox", "zsh", "ksh", "csh", "fish", "env", "toybox"}
INSTALLERS = {"apt", "apt-get", "dpkg", "pip", "pip3", "rpm", "apk", "dnf", "easy_install", "uv"}
#: Modules that install or load others from elsewhere.
INSTALLING_PACKAGES = {"pip", "setuptools", "ensurepip", "pkg_resources", "wheel", "_distutils_hack"}

#: The roles that a connection passes: the modules on its way are compiled. The others are Python only.
COMPILED_ROLES = {"listener", "umaster", "vhost"}

NATIVE = f".cpython-313-{platform.machine()}-linux-gnu.so"

#: What compose covers with a tmpfs in tenants' containers, of the mode that lies below.
MOUNT_POINTS = {"tmp", "run/health"}


@pytest.fixture(params=IMAGES)
def image(request: pytest.FixtureRequest) -> Image:
    return load(request.param, TAG)


def test_is_small(image: Image) -> None:
    assert image.size <= MOST_BYTES + PROGRAMS_BYTES.get(image.name, 0)


def test_runs_its_role_as_its_numeric_user(image: Image) -> None:
    uid = ROLES[Role(image.role)].uid
    config = image.config["config"]
    assert config["User"] == f"{uid}:{uid}"
    assert config["Entrypoint"] == ["/usr/bin/python3", "-I", "-m", f"pyttpd_{image.role}"]
    assert not config.get("Cmd")
    assert not config.get("ExposedPorts")
    assert not config.get("Volumes")
    assert config["Env"] in (["LANG=C.UTF-8"], [*config["Env"][:1], "LANG=C.UTF-8"])
    assert config["Healthcheck"]["Test"] == ["CMD", "/usr/bin/python3", "-I", "-m", "pyttpd.health"]


def test_starts_with_nothing_to_write_to_and_no_rights(image: Image) -> None:
    arguments = ["--read-only", "--network=none", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
    done = subprocess.run(
        ["docker", "run", "--rm", *arguments, f"{image.name}:{TAG}", "--version"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.strip()) == (0, __version__), done.stderr


def test_has_the_programs_that_it_needs_and_no_other(image: Image) -> None:
    programs = {
        path
        for path, info in image.files.items()
        if info.isreg()
        and info.mode & 0o111
        and ".so" not in path.rpartition("/")[2]
        and not path.startswith("srv/")  # the site's own
    }
    assert programs == {"usr/bin/python3.13"} | PROGRAMS.get(image.name, set())


def test_has_no_shell_and_no_package_manager(image: Image) -> None:
    names = {path.rpartition("/")[2] for path, info in image.files.items() if not info.isdir()}
    assert not names & (SHELLS | INSTALLERS)
    modules = {path.rpartition("/")[2].removesuffix(".py") for path in image.files}
    assert not modules & INSTALLING_PACKAGES


def test_nobody_gains_rights_by_a_file(image: Image) -> None:
    for path, info in image.files.items():
        assert not info.mode & (0o6000 if path in MOUNT_POINTS else 0o7000), (
            f"{path} is setuid, setgid or sticky"
        )
        assert not any("security." in key for key in info.pax_headers), f"{path} has capabilities"
        assert not info.isdev(), f"{path} is a device"


def test_nobody_may_write_a_file(image: Image) -> None:
    for path, info in image.files.items():
        assert (info.uid, info.gid) == (0, 0), f"{path} belongs to {info.uid}:{info.gid}"
        if path in MOUNT_POINTS and image.role == "vhost":
            # Compose covers both with a tmpfs of this mode: a tenant's uid is its operator's choice.
            assert (info.isdir(), info.mode & 0o7777) == (True, 0o1777), path
            continue
        assert info.issym() or not info.mode & 0o022, f"{path} has mode {info.mode:o}"


def test_has_no_other_roles_code(image: Image) -> None:
    others = {f"pyttpd_{role.value}" for role in Role if role.value != image.role} | {"pyttpd_ctl"}
    for path in image.files:
        assert not others & {part.partition("-")[0].partition(".")[0] for part in path.split("/")}, path


def test_has_exactly_the_locked_distributions(image: Image) -> None:
    own = {"pyttpd": __version__, f"pyttpd-{image.role}": __version__}
    assert image.distributions() == locked(image.role) | own


def test_has_no_package_that_no_distribution_brought(image: Image) -> None:
    packages = {path.removeprefix(SITE).partition("/")[0] for path in image.files if path.startswith(SITE)}
    packages = {name for name in packages if not name.endswith((".dist-info", NATIVE))}
    expected = {name.replace("-", "_") for name in image.distributions()}
    assert packages == expected


def test_has_the_hot_path_compiled_and_nothing_else_of_ours(image: Image) -> None:
    ours = {"pyttpd", f"pyttpd_{image.role}"}
    found = {
        path.removeprefix(SITE).removesuffix(NATIVE).replace("/", ".")
        for path in image.files
        if path.startswith(f"{SITE}pyttpd") and path.endswith(NATIVE)
    }
    expected = {module for module in compiled() if module.partition(".")[0] in ours} | {"pyttpd__mypyc"}
    assert found == (expected if image.role in COMPILED_ROLES else set())


def test_is_byte_compiled(image: Image) -> None:
    sources = [path for path in image.files if path.endswith(".py")]
    assert sources
    for path in sources:
        if path.startswith("srv/") and image.files[path].mode & 0o111:
            continue  # a program, and no module
        folder, _, name = path.rpartition("/")
        compiled = f"{folder}/__pycache__/{name.removesuffix('.py')}.cpython-313.pyc"
        assert compiled in image.files, f"{path} would be compiled at every start"


def test_has_no_trace_of_the_build(image: Image) -> None:
    for path in image.files:
        name = path.rpartition("/")[2]
        assert name not in ("direct_url.json", "EXTERNALLY-MANAGED", "requirements.lock", ".lock"), path
        assert not path.startswith(("root/", "src/", "var/", "home/")), path
        assert not name.endswith((".whl", ".deb", ".toml")), path
