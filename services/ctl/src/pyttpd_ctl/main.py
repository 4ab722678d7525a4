"""`pyttpd`, the operator's command: check, run, reload, routes, status, top, schema, version.

Exit status: 0 all is well; 1 it is not (an invalid configuration, a host that nobody gets, a role that is down); 2
wrong usage. What is wrong goes to standard error, one line each.
"""

from __future__ import annotations

import errno
import importlib.util
import ipaddress
import os
import platform
import re
import sys
from typing import NoReturn

import click

from pyttpd import __version__, admin
from pyttpd.config import json_schema, limits
from pyttpd.config.errors import ConfigErrors, printable
from pyttpd.config.filesystem import check_filesystem
from pyttpd.config.limits import BASE_PORT
from pyttpd.config.loader import load, load_located

from pyttpd_ctl import output
from pyttpd_ctl import status as status_module
from pyttpd_ctl import top as top_module
from pyttpd_ctl.routes import routes as find_routes

_CONFIG = click.Path(exists=True, file_okay=True, dir_okay=True)
_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _examples(*lines: str) -> str:
    """Return a help text's last part; the first character tells click to keep the lines."""
    return "\n".join(["\b", "Examples:", *[f"  {line}" for line in lines]])


@click.group(
    context_settings=_SETTINGS,
    epilog=_examples(
        "pyttpd check /etc/pyttpd/pyttpd.toml     is the configuration valid?",
        "pyttpd run examples/pyttpd.toml          the whole tree, without containers",
        "pyttpd status                            how are its parts?",
    ),
)
@click.version_option(__version__, message="pyttpd %(version)s", help="Print the version, and end.")
def cli() -> None:
    """A web server for tenants who do not trust each other.

    FILE is a configuration file, or a folder with a pyttpd.toml in it. `pyttpd COMMAND --help` has more examples.
    """


@cli.command(
    epilog=_examples(
        "pyttpd check examples/pyttpd.toml",
        "pyttpd check --quiet --no-files /etc/pyttpd && systemctl reload pyttpd",
    )
)
@click.argument("file", type=_CONFIG)
@click.option("--quiet", "-q", is_flag=True, help="Say nothing if the configuration is valid.")
@click.option(
    "--no-files",
    is_flag=True,
    help="Don't look whether the named folders exist: they may be in the tenants' containers.",
)
@click.pass_context
def check(context: click.Context, file: str, quiet: bool, no_files: bool) -> None:
    """Validate a configuration; start nothing.

    Tells all errors at once, each with file, line, table and key. Exit status 0: valid; 1: not.
    """
    try:
        config, locate = load_located(file)
    except ConfigErrors as errors:
        _tell_errors(errors, file)
        context.exit(1)
    if not no_files:
        wrong = check_filesystem(config, locate)
        if wrong:
            _tell_errors(ConfigErrors(wrong), file)
            if any(error.message.endswith(os.strerror(errno.ENOENT)) for error in wrong):
                click.echo(
                    "Are these in tenants' containers? Nobody can look there from here: --no-files.", err=True
                )
            context.exit(1)
    if not quiet:
        listeners = len(config.listeners) - 1  # without the tenants' metrics listener, which nobody wrote
        names = sum(len(vhost.hosts) for vhost in config.vhosts)
        counts = [
            _count(listeners, "listener"),
            _count(len(config.vhosts), "vhost"),
            _count(names, "host name"),
        ]
        click.echo(f"{printable(file)}: valid: {', '.join(counts)}")


@cli.command(
    short_help="Run the whole tree as plain processes.",
    epilog=_examples(
        "pyttpd run examples/pyttpd.toml",
        "sudo .venv/bin/pyttpd run /etc/pyttpd",
    ),
)
@click.argument("file", type=_CONFIG)
def run(file: str) -> None:
    """Run the whole tree as plain processes, until Ctrl-C (twice: at once).

    As root, each role and tenant gets its own uid and each tenant a network namespace of its own. As an ordinary user
    all processes have your uid, and pyttpd says what that costs.
    """
    if importlib.util.find_spec("pyttpd_init") is None:
        raise click.ClickException(
            "the roles are not installed here (pyttpd_init is missing): use `make venv`"
        )
    # -I: neither the current folder nor the environment says what is imported. This process becomes init.
    program = [sys.executable, "-I", "-m", "pyttpd_init", "--plain", "--config", os.path.abspath(file)]
    sys.stdout.flush()
    try:
        os.execv(sys.executable, program)
    except OSError as error:
        raise click.ClickException(f"can't start {sys.executable}: {error.strerror}") from None


@cli.command(
    short_help="Put the changed configuration in force, or a tenant's new code.",
    epilog=_examples(
        "pyttpd reload --dry-run                  what would change?",
        "pyttpd reload                            put it in force",
        "pyttpd reload blog                       new processes for one vhost: its code has changed",
        "docker compose exec master pyttpd reload with compose: the same, in master's container",
    ),
)
@click.argument("vhost", required=False, default="")
@click.option("--dry-run", is_flag=True, help="Only say what would change, and what that takes.")
@click.option("--quiet", "-q", is_flag=True, help="Only say what came of it.")
@click.option(
    "--runtime-dir", default="", help="Where the tree's channels are.  [default: /run/pyttpd, or yours]"
)
@click.option("--config", "file", type=_CONFIG, help="Take the place from this configuration instead.")
@click.pass_context
def reload(
    context: click.Context, vhost: str, dry_run: bool, quiet: bool, runtime_dir: str, file: str | None
) -> None:
    """Put the changed configuration in force, without losing a connection; or, with VHOST, start that tenant's
    processes anew, since its code has changed.

    Everything is read and validated first: if anything is wrong with it, all of it is told, and nothing changes. A
    tenant whose table hasn't changed isn't touched. Code that doesn't load leaves the old serving. Exit status: 0
    done; 1 refused, or not everything serves by it; 2 wrong usage; 3 nobody could be asked. Takes root, or the
    group admin_gid.
    """
    if vhost and dry_run:
        raise click.UsageError("--dry-run is for the configuration", context)
    if vhost and limits.NAME.fullmatch(vhost) is None:
        raise click.UsageError("that is not a vhost's name", context)
    if file is not None:
        if runtime_dir:
            raise click.UsageError("--runtime-dir and --config exclude each other", context)
        try:
            config, locate = load_located(file)
        except ConfigErrors as errors:
            _tell_errors(errors, file)
            context.exit(1)
        runtime_dir = config.runtime_dir
        if os.geteuid():
            runtime_dir = admin.user_directory(runtime_dir)
        if not vhost and _runs_here(runtime_dir):
            # No refusal: a tenant that moves its own folder away would keep all others from being reloaded.
            for wrong in check_filesystem(config, locate):
                output.complain(f"warning: {wrong}")
    context.exit(admin.command(runtime_dir, vhost, dry_run=dry_run, quiet=quiet))


@cli.command(
    epilog=_examples(
        "pyttpd routes examples/pyttpd.toml static.localhost www.example:8080",
        "pyttpd routes --json /etc/pyttpd blog.example",
    )
)
@click.argument("file", type=_CONFIG)
@click.argument("hosts", metavar="HOST...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for another program.")
@click.pass_context
def routes(context: click.Context, file: str, hosts: tuple[str, ...], as_json: bool) -> None:
    """Say which vhost gets a request for HOST, and why.

    HOST is what a browser sends: a name or address, with or without a port; '' is a request without any. Exit status
    1: there is at least one that nobody gets.
    """
    try:
        config = load(file)
    except ConfigErrors as errors:
        _tell_errors(errors, file)
        context.exit(1)
    found = find_routes(config, hosts)
    if as_json:
        output.show_json(
            [
                {
                    "asked": each.asked,
                    "host": each.host,
                    "vhost": each.vhost,
                    "why": each.why,
                    "status": each.status,
                }
                for each in found
            ]
        )
    else:
        output.show_table(
            "Routes",
            [("host", False), ("vhost", False), ("uid", True), ("why", False)],
            [
                (each.asked or "(none)", each.vhost, str(config.vhost(each.vhost).uid), each.why)
                if each.vhost
                else (each.asked or "(none)", "-", "-", f"{each.why}: answered {each.status}")
                for each in found
            ],
        )
    context.exit(0 if all(each.vhost for each in found) else 1)


@cli.command(
    short_help="Show a running tree: its roles and tenants.",
    epilog=_examples(
        "pyttpd status",
        "pyttpd status --metrics 127.0.0.1:9200",
        "pyttpd status --json | jq '.tenants[] | select(.errors > 0)'",
    ),
)
@click.option(
    "--metrics",
    metavar="ADDRESS:PORT",
    default=None,
    help="Where the tree's metrics start.  [default: 127.0.0.1:9100]",
)
@click.option("--config", "file", type=_CONFIG, help="Take the address from this configuration instead.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for another program.")
@click.pass_context
def status(context: click.Context, metrics: str | None, file: str | None, as_json: bool) -> None:
    """Show a running tree: its roles and tenants, as their metrics tell.

    Ages are those of the processes; connections those open now; requests and errors those since the start. Exit
    status 1: something is down.
    """
    address, base_port = _where(context, metrics, file)
    tree = status_module.status(address, base_port)
    if as_json:
        output.show_json(tree.to_dict())
    elif not tree.found:
        output.complain(
            f"pyttpd status: nobody serves metrics at {address} from port {base_port} on: does a tree run? "
            "--config, or --metrics, says where"
        )
    else:
        status_module.show(tree)
    context.exit(0 if tree.up else 1)


@cli.command(
    short_help="Show the workers of a running tree, live.",
    epilog=_examples(
        "pyttpd top",
        "pyttpd top --sort m --interval 2",
        "pyttpd top --once | head",
    ),
)
@click.option(
    "--metrics",
    metavar="ADDRESS:PORT",
    default=None,
    help="Where the tree's metrics start.  [default: 127.0.0.1:9100]",
)
@click.option("--config", "file", type=_CONFIG, help="Take the address from this configuration instead.")
@click.option(
    "--interval",
    type=click.FloatRange(top_module.LEAST_INTERVAL, top_module.MOST_INTERVAL),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option(
    "--sort",
    type=click.Choice(list(top_module.SORTS)),
    default="c",
    show_default=True,
    help="By what: " + ", ".join(f"{key} {what}" for key, (what, _) in top_module.SORTS.items()) + ".",
)
@click.option("--once", "just_once", is_flag=True, help="Print one screen with all workers, and end.")
@click.pass_context
def top(
    context: click.Context, metrics: str | None, file: str | None, interval: float, sort: str, just_once: bool
) -> None:
    """Show the workers of a running tree, live: the letters below the table sort it, q ends.

    Requests per second and CPU are those since the look before; memory is what a worker has got for itself.
    """
    address, base_port = _where(context, metrics, file)
    if just_once:
        context.exit(top_module.once(address, base_port, sort))
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("this takes a terminal; with --once it doesn't", context)
    context.exit(top_module.run(address, base_port, interval, sort))


@cli.command(
    epilog=_examples(
        "pyttpd schema > /etc/pyttpd/pyttpd.schema.json",
    )
)
def schema() -> None:
    """Print the configuration's JSON schema, for editors.

    With it beside the configuration, and "#:schema pyttpd.schema.json" as its first line, editors that know Taplo
    ("Even Better TOML") complete keys, show what they mean, and mark what is wrong.
    """
    click.echo(json_schema.document(), nl=False)


@cli.command(
    epilog=_examples(
        "pyttpd version",
    )
)
def version() -> None:
    """Print the version."""
    click.echo(f"pyttpd {__version__} (Python {platform.python_version()}, Linux {platform.release()})")


def _where(context: click.Context, metrics: str | None, file: str | None) -> tuple[str, int]:
    """Return the address and first port of the metrics that the options name. Ends the command if they are wrong."""
    if metrics is not None and file is not None:
        raise click.UsageError("--metrics and --config exclude each other", context)
    if file is None:
        return _metrics_address(metrics or "127.0.0.1:9100")
    try:
        settings = load(file).metrics
    except ConfigErrors as errors:
        _tell_errors(errors, file)
        context.exit(1)
    return _reachable(settings.address), settings.base_port


def _runs_here(runtime_dir: str) -> bool:
    """Whether a tree without containers has `runtime_dir`, and is ours: its tenants see the files that we see."""
    try:
        return os.stat(f"{runtime_dir}/lock").st_uid == os.geteuid()
    except OSError:
        return False


def _tell_errors(errors: ConfigErrors, file: str) -> None:
    output.complain(str(errors))
    output.complain(f"{printable(file)}: not valid: {_count(errors.count, 'error')}")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _metrics_address(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)|localhost):([0-9]{1,5})", text)
    try:
        if match is None or int(match[3]) not in BASE_PORT:
            raise ValueError
        host = str(ipaddress.ip_address(match[1] or match[2] or "127.0.0.1"))
    except ValueError:
        message = f"must be an IP address and a port from {BASE_PORT.low} to {BASE_PORT.high}, such as 127.0.0.1:9100"
        raise click.BadParameter(message, param_hint="--metrics") from None
    return host, int(match[3])


def _reachable(address: str) -> str:
    """Return where to connect to for sockets bound to `address`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)


def main() -> NoReturn:
    """Run the command and end the process with its status."""
    sys.exit(_run())


def _run() -> int:
    try:
        result = cli.main(prog_name="pyttpd", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        where = (
            error.ctx.command_path
            if isinstance(error, click.UsageError) and error.ctx is not None
            else "pyttpd"
        )
        hint = f" (see {where} --help)" if isinstance(error, click.UsageError) else ""
        output.complain(f"{where}: {printable(error.format_message(), 500)}{hint}")
        return error.exit_code
    except click.Abort:
        return 130
    except BrokenPipeError:
        # Whoever read us has enough. Nothing more must be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return result if isinstance(result, int) else 0
