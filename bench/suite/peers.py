"""The servers: each as its own documentation recommends for production, on a given port, in a folder of its own.

Rules
  1. Nobody's log is off while others' are on: `Setting.log` holds for all; each writes one line a request into a file.
  2. Each has as many processes as its documentation advises for `Setting.cores` (`2 n + 1` for gunicorn, one per core
     for nginx, granian and uvicorn, Debian's settings for Apache). Ours: a worker per core. docs/benchmarks.md says
     where each setting comes from: keep both in step.
  3. Peers that aren't here are installed by scripts/bench; one that can't be had is named in the table.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from suite import household
from suite.machine import SERVER_CORE, free_ports, wait_for_port

HERE = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
HELLO = b"Hello, world!"
#: How many bytes the WSGI and ASGI applications of wrk's cases answer with.
SIZE = int(os.environ.get("PYTTPD_BENCH_BODY", len(HELLO)))
BODY = (HELLO * (SIZE // len(HELLO) + 1))[:SIZE]


@dataclass(frozen=True, slots=True)
class Setting:
    """What a peer is to do: where it lives, its port (and `spare` ones behind it), whether it writes its log,
    and how many cores there are for it."""

    folder: Path
    port: int
    log: bool
    spare: int
    cores: int = 1


@dataclass(frozen=True, slots=True)
class Peer:
    """A server. `start` writes its configuration and returns its commands, the one that listens on `port` last."""

    name: str
    start: Callable[[Setting], list[list[str]]]
    version: tuple[str, ...]


@contextlib.contextmanager
def running(peer: Peer, *, log: bool, pin: bool = True) -> Iterator[tuple[int, list[int]]]:
    """Run `peer`; yield its port and the pids of what was started."""
    folder = household.new_folder()
    port = free_ports(24)
    setting = Setting(folder, port, log, port + 1, 1 if pin else os.cpu_count() or 1)
    servers: list[subprocess.Popen[bytes]] = []
    try:
        for command in peer.start(setting):
            with open(folder / "output", "ab") as output:
                servers.append(
                    subprocess.Popen(
                        ["taskset", "-c", SERVER_CORE, *command] if pin else command,
                        cwd=folder,
                        stdout=output,
                        stderr=output,
                        start_new_session=True,
                    )
                )
        try:
            wait_for_port(port, servers[-1], peer.name)
        except SystemExit as error:
            said = (folder / "output").read_text(errors="replace").strip().splitlines()[-1:]
            raise SystemExit(f"{error}: {' '.join(said)[:200]}") from None
        yield port, [server.pid for server in servers]
    finally:
        for server in reversed(servers):
            server.send_signal(signal.SIGTERM)
        for server in servers:
            try:
                server.wait(40)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            with contextlib.suppress(
                ProcessLookupError
            ):  # Apache's processes outlive the one that was started
                os.killpg(server.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


# ---- pyttpd ---------------------------------------------------------------------------------------------------------

TREE = """
runtime_dir = "{folder}/run"
[log]
level = "warning"
[listen.http]
address = "127.0.0.1:{port}"
[metrics]
base_port = {metrics}
"""
TENANT = """
[vhost.{name}]
hosts = ["{host}"]
uid = {uid}
kind = "{kind}"
root = "{root}"
{application}
access_log = "{log}"
pool = {{ max_workers = {workers}, max_threads = {threads} }}
"""


def tree(setting: Setting, tenants: str) -> list[list[str]]:
    (setting.folder / "pyttpd.toml").write_text(
        TREE.format(folder=setting.folder, port=setting.port, metrics=setting.spare) + tenants
    )
    return [[PYTHON, "-I", "-m", "pyttpd_init", "--plain", "--config", f"{setting.folder}/pyttpd.toml"]]


def tenant(
    setting: Setting,
    kind: str,
    *,
    root: Path | None = None,
    application: str = "",
    workers: int = 1,
    threads: int = 1,
    number: int = 0,
) -> str:
    return TENANT.format(
        name=f"t{number}",
        host="127.0.0.1" if number == 0 else f"t{number}.example",
        uid=20001 + number,
        kind=kind,
        root=root or applications(setting),
        application=f'application = "{application}"' if application else "",
        log="combined" if setting.log else "off",
        workers=workers,
        threads=threads,
    )


def applications(setting: Setting) -> Path:
    """Put the applications where every uid can read them."""
    folder = setting.folder / "application"
    if not folder.exists():
        folder.mkdir(mode=0o755)
        for name in ("hello.py", "hello_asgi.py"):
            text = (HERE / name).read_text()
            if BODY != HELLO:
                text = text.replace('b"Hello, world!"', f"({HELLO!r} * {SIZE // len(HELLO) + 1})[:{SIZE}]")
            (folder / name).write_text(text)
    return folder


def pyttpd_wsgi(setting: Setting) -> list[list[str]]:
    return tree(setting, tenant(setting, "wsgi", application="hello:app", workers=setting.cores))


def pyttpd_asgi(loop: str) -> Callable[[Setting], list[list[str]]]:
    def start(setting: Setting) -> list[list[str]]:
        table = tenant(setting, "asgi", application="hello_asgi:app", workers=setting.cores)
        return tree(setting, f'{table}[vhost.t0.asgi]\nevent_loop = "{loop}"\n')

    return start


def worker_alone(setting: Setting) -> list[list[str]]:
    command = [
        PYTHON,
        str(HERE / "standalone.py"),
        "--path",
        str(applications(setting)),
        "--port",
        str(setting.port),
    ]
    command += ["--access-log", f"{setting.folder}/access.log"] if setting.log else []
    return [command]


# ---- WSGI -----------------------------------------------------------------------------------------------------------


def gunicorn(kind: str, path: str = "") -> Callable[[Setting], list[list[str]]]:
    def start(setting: Setting) -> list[list[str]]:
        address = f"unix:{setting.folder}/{path}" if path else f"127.0.0.1:{setting.port}"
        command = [PYTHON, "-m", "gunicorn", "--workers", str(2 * setting.cores + 1), "--worker-class", kind]
        command += ["--bind", address, "--backlog", "2048", "--chdir", str(applications(setting))]
        if kind == "gthread":
            command += ["--threads", "4"]
        if setting.log:
            command += ["--access-logfile", f"{setting.folder}/access.log"]
        return [[*command, "hello:app"]]

    return start


def granian(interface: str) -> Callable[[Setting], list[list[str]]]:
    def start(setting: Setting) -> list[list[str]]:
        command = [PYTHON, "-m", "granian", "--interface", interface, "--workers", str(setting.cores)]
        command += ["--http", "1", "--host", "127.0.0.1", "--port", str(setting.port)]
        command += ["--working-dir", str(applications(setting))]
        command += ["--access-log"] if setting.log else ["--no-access-log", "--log-level", "error"]
        return [[*command, "hello:app" if interface == "wsgi" else "hello_asgi:app"]]

    return start


def uwsgi_workers(setting: Setting, plugins: str) -> list[str]:
    """What every uWSGI here has; two processes for a core."""
    command = ["uwsgi", "--master", "--plugin", plugins, "--need-app", "--die-on-term", "--processes"]
    return [
        *command,
        str(2 * setting.cores),
        "--listen",
        "1024",
        "--chdir",
        str(applications(setting)),
        "--module",
        "hello:app",
    ]


def uwsgi(setting: Setting) -> list[list[str]]:
    command = [*uwsgi_workers(setting, "http,python3"), "--http-keepalive"]
    command += ["--http", f"127.0.0.1:{setting.port}"]
    command += ["--logto", f"{setting.folder}/access.log"] if setting.log else ["--disable-logging"]
    return [command]


def waitress(setting: Setting) -> list[list[str]]:
    logged = "--call hello_logged:make" if setting.log else "hello:app"
    if setting.log:  # waitress writes none itself: its documentation says to wrap the application
        (applications(setting) / "hello_logged.py").write_text(
            WAITRESS_LOG.format(folder=str(setting.folder))
        )
    code = f"import sys; sys.path.insert(0, {str(applications(setting))!r}); from waitress.runner import run; run()"
    return [[PYTHON, "-c", code, f"--listen=127.0.0.1:{setting.port}", "--threads=4", *logged.split()]]


WAITRESS_LOG = """
import hello, time
log = open({folder!r} + "/access.log", "a", buffering=1)
def make():
    def app(environ, start_response):
        def started(status, headers, exc_info=None):
            log.write(f'{{environ["REMOTE_ADDR"]}} - - [{{time.strftime("%d/%b/%Y:%H:%M:%S %z")}}] '
                      f'"{{environ["REQUEST_METHOD"]}} {{environ["PATH_INFO"]}} HTTP/1.1" {{status[:3]}} 13\\n')
            return start_response(status, headers)
        return hello.app(environ, started)
    return app
"""

NGINX = """
daemon off;
worker_processes {cores};
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 16384; }}
http {{
    sendfile on;
    tcp_nopush on;
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    access_log {log};
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    keepalive_requests 1000000000;
    {http}
    server {{ listen 127.0.0.1:{port} backlog=4096; {server} }}
    {more}
}}
"""


def nginx(setting: Setting, *, http: str = "", server: str, more: str = "") -> list[str]:
    path = setting.folder / "nginx.conf"
    path.write_text(
        NGINX.format(
            folder=setting.folder,
            cores=setting.cores,
            log=f"{setting.folder}/nginx.log" if setting.log else "off",
            port=setting.port,
            http=http,
            server=server,
            more=more,
        )
    )
    return ["nginx", "-c", str(path)]


PROXY = "proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ''; proxy_set_header Host $host;"


def behind_nginx(
    what: Callable[[Setting], list[list[str]]], path: str = ""
) -> Callable[[Setting], list[list[str]]]:
    """nginx with kept connections to what listens behind it, on the socket `path` if it has one; only the one in front
    writes a log.
    """

    def start(setting: Setting) -> list[list[str]]:
        behind = what(replace(setting, port=setting.spare, log=False, spare=setting.spare + 1))
        address = f"unix:{setting.folder}/{path}" if path else f"127.0.0.1:{setting.spare}"
        http = f"upstream app {{ server {address} fail_timeout=0; keepalive 64; }}"
        return [*behind, nginx(setting, http=http, server=f"location / {{ {PROXY} }}")]

    return start


def nginx_uwsgi(setting: Setting) -> list[list[str]]:
    path = f"{setting.folder}/uwsgi.sock"
    command = [*uwsgi_workers(setting, "python3"), "--socket", path, "--chmod-socket=666"]
    server = f"location / {{ include /etc/nginx/uwsgi_params; uwsgi_pass unix:{path}; }}"
    return [[*command, "--disable-logging"], nginx(setting, server=server)]


# ---- Apache ---------------------------------------------------------------------------------------------------------

APACHE = """
ServerRoot /etc/apache2
ServerName localhost
DefaultRuntimeDir {folder}
PidFile {folder}/apache.pid
Mutex file:{folder} default
ErrorLog {folder}/error.log
Listen 127.0.0.1:{port}
ListenBacklog 1024
User {user}
Group {user}
KeepAlive On
MaxKeepAliveRequests 0
KeepAliveTimeout 5
LoadModule mpm_{mpm}_module /usr/lib/apache2/modules/mod_mpm_{mpm}.so
{modules}
LogFormat "%h %l %u %t \\"%r\\" %>s %O" common
{log}
<Directory />
    AllowOverride None
    Require all granted
</Directory>
TypesConfig /etc/mime.types
{more}
"""
#: Debian's /etc/apache2/mods-available/mpm_*.conf.
MPM = {
    "event": "StartServers 2\nMinSpareThreads 25\nMaxSpareThreads 75\nThreadLimit 64\nThreadsPerChild 25\n"
    "MaxRequestWorkers 150\nMaxConnectionsPerChild 0",
    "prefork": "StartServers 5\nMinSpareServers 5\nMaxSpareServers 10\nMaxRequestWorkers 150\n"
    "MaxConnectionsPerChild 0\nLoadModule mpm_itk_module /usr/lib/apache2/modules/mpm_itk.so",
}


def apache(setting: Setting, mpm: str, modules: tuple[str, ...], more: str) -> list[str]:
    path = setting.folder / "apache.conf"
    path.write_text(
        APACHE.format(
            folder=setting.folder,
            port=setting.port,
            user="www-data",
            mpm=mpm,
            modules="\n".join(
                f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so"
                for name in ("authz_core", "mime", "dir", *modules)
            ),
            log=f"CustomLog {setting.folder}/access.log common" if setting.log else "",
            more=MPM[mpm] + "\n" + more,
        )
    )
    return ["apache2", "-DFOREGROUND", "-f", str(path)]


def mod_wsgi(setting: Setting) -> list[list[str]]:
    folder = applications(setting)
    (folder / "hello.wsgi").write_text("from hello import app as application\n")
    more = (
        f"WSGIDaemonProcess hello processes={2 * setting.cores} threads=15 python-path={folder}\n"
        f"WSGIProcessGroup hello\nWSGISocketPrefix {setting.folder}/wsgi\nWSGIScriptAlias / {folder}/hello.wsgi"
    )
    return [apache(setting, "event", ("wsgi",), more)]


def mpm_itk_wsgi(setting: Setting) -> list[list[str]]:
    folder = applications(setting)
    (folder / "hello.wsgi").write_text("from hello import app as application\n")
    more = f"AssignUserID nobody nogroup\nWSGIPythonPath {folder}\nWSGIScriptAlias / {folder}/hello.wsgi\n"
    return [apache(setting, "prefork", ("wsgi",), more + imported(folder / "hello.wsgi"))]


def imported(script: Path) -> str:
    """mod_wsgi within Apache's own processes: import this when one starts, and not for each connection, whose process
    is forked from it.
    """
    group = "%{GLOBAL}"
    return f"WSGIApplicationGroup {group}\nWSGIImportScript {script} process-group={group} application-group={group}\n"


# ---- ASGI -----------------------------------------------------------------------------------------------------------


def uvicorn(http: str, loop: str) -> Callable[[Setting], list[list[str]]]:
    def start(setting: Setting) -> list[list[str]]:
        command = [PYTHON, "-m", "uvicorn", "--http", http, "--loop", loop, "--host", "127.0.0.1"]
        command += ["--port", str(setting.port), "--app-dir", str(applications(setting))]
        command += ["--workers", str(setting.cores)] if setting.cores > 1 else []
        command += [] if setting.log else ["--no-access-log", "--log-level", "warning"]
        return [[*command, "hello_asgi:app"]]

    return start


def hypercorn(setting: Setting) -> list[list[str]]:
    command = [PYTHON, "-m", "hypercorn", "--workers", str(setting.cores), "--worker-class", "uvloop"]
    command += ["--bind", f"127.0.0.1:{setting.port}"]
    command += ["--access-logfile", f"{setting.folder}/access.log"] if setting.log else []
    return [[*command, f"{applications(setting)}/hello_asgi:app"]]


# ---- static ---------------------------------------------------------------------------------------------------------


def files(setting: Setting) -> Path:
    """Three files: what is in them is the case's to check (`content`)."""
    folder = setting.folder / "files"
    if not folder.exists():
        folder.mkdir(mode=0o755)
        for name, size in SIZES.items():
            (folder / name).write_bytes(content(size))
    return folder


SIZES = {"1k.bin": 1024, "100k.bin": 100 * 1024, "10m.bin": 10 * 1024 * 1024}


def content(size: int) -> bytes:
    return bytes(number * 7 % 251 for number in range(1024)) * (size // 1024)


def pyttpd_static(setting: Setting) -> list[list[str]]:
    return tree(setting, tenant(setting, "static", root=files(setting), workers=setting.cores))


def nginx_static(cache: str) -> Callable[[Setting], list[list[str]]]:
    def start(setting: Setting) -> list[list[str]]:
        return [
            nginx(
                setting,
                http=cache,
                server=f"root {files(setting)}; location / {{ try_files $uri $uri/ =404; }}",
            )
        ]

    return start


OPEN_FILE_CACHE = (
    "open_file_cache max=1000 inactive=20s; open_file_cache_valid 30s; open_file_cache_errors on;"
)


def apache_static(mpm: str) -> Callable[[Setting], list[list[str]]]:
    def start(setting: Setting) -> list[list[str]]:
        itk = "AssignUserID nobody nogroup\n" if mpm == "prefork" else ""
        return [apache(setting, mpm, (), f"{itk}DocumentRoot {files(setting)}")]

    return start


def package(name: str) -> tuple[str, ...]:
    return PYTHON, "-c", f"import importlib.metadata as m; print({name!r}, m.version({name!r}))"


NGINX_VERSION, APACHE_VERSION, UWSGI_VERSION = ("nginx", "-v"), ("apache2", "-v"), ("uwsgi", "--version")
OUR_VERSION = (PYTHON, "-c", "import importlib.metadata as m; print('pyttpd', m.version('pyttpd'))")

PYTTPD_WSGI = Peer("pyttpd", pyttpd_wsgi, OUR_VERSION)
PYTTPD_ASGI_UVLOOP = Peer("pyttpd, uvloop", pyttpd_asgi("uvloop"), OUR_VERSION)
PYTTPD_ASGI = Peer("pyttpd", pyttpd_asgi("asyncio"), OUR_VERSION)
PYTTPD_STATIC = Peer("pyttpd", pyttpd_static, OUR_VERSION)
ALONE = Peer("pyttpd's worker alone", worker_alone, OUR_VERSION)
GUNICORN_SYNC = Peer("gunicorn sync", gunicorn("sync"), package("gunicorn"))
GUNICORN_GTHREAD = Peer("gunicorn gthread", gunicorn("gthread"), package("gunicorn"))
GRANIAN_WSGI = Peer("granian", granian("wsgi"), package("granian"))
GRANIAN_ASGI = Peer("granian", granian("asgi"), package("granian"))
UWSGI = Peer("uWSGI", uwsgi, UWSGI_VERSION)
WAITRESS = Peer("waitress", waitress, package("waitress"))
NGINX_GUNICORN = Peer(
    "nginx + gunicorn", behind_nginx(gunicorn("sync", "gunicorn.sock"), "gunicorn.sock"), NGINX_VERSION
)
NGINX_GRANIAN = Peer("nginx + granian", behind_nginx(granian("wsgi")), NGINX_VERSION)
NGINX_UWSGI = Peer("nginx + uWSGI", nginx_uwsgi, NGINX_VERSION)
MOD_WSGI = Peer("Apache mod_wsgi", mod_wsgi, APACHE_VERSION)
MPM_ITK_WSGI = Peer("Apache mpm-itk", mpm_itk_wsgi, APACHE_VERSION)
UVICORN_H11 = Peer("uvicorn h11", uvicorn("h11", "asyncio"), package("uvicorn"))
UVICORN_HTTPTOOLS = Peer("uvicorn httptools", uvicorn("httptools", "asyncio"), package("uvicorn"))
UVICORN_UVLOOP = Peer("uvicorn httptools, uvloop", uvicorn("httptools", "uvloop"), package("uvicorn"))
HYPERCORN = Peer("hypercorn", hypercorn, package("hypercorn"))
NGINX_STATIC = Peer("nginx", nginx_static(""), NGINX_VERSION)
NGINX_CACHED = Peer("nginx open_file_cache", nginx_static(OPEN_FILE_CACHE), NGINX_VERSION)
APACHE_EVENT = Peer("Apache event", apache_static("event"), APACHE_VERSION)
APACHE_ITK = Peer("Apache mpm-itk", apache_static("prefork"), APACHE_VERSION)
