"""Ten tenants who don't trust each other, each under a uid of its own: who does that, and how.

The application answers with its uid, so a server that doesn't keep them apart isn't measured. A kept connection stays
with its tenant. Everybody has what its documentation or Debian's package starts with: uWSGI two processes in each
pool, php-fpm Debian's `pm` lines, mpm-itk Debian's prefork, a tenant of pyttpd two php-cgi, and one worker
of two threads, as docs/fastcgi.md advises.

mod_wsgi is embedded in mpm-itk's processes, and all tenants' applications are imported before these become a tenant's:
quicker than it would be among tenants who don't trust each other, since their code runs there under Apache's own user.
"""

from __future__ import annotations

import glob
import shutil
from pathlib import Path

from suite.peers import (
    APACHE_VERSION,
    HERE,
    NGINX_VERSION,
    OUR_VERSION,
    Peer,
    Setting,
    apache,
    imported,
    nginx,
    tenant,
    tree,
)

TENANTS = range(1, 11)
#: Each tenant's name, and what it answers.
HOSTS = {f"t{number}.example": b"Hello from %d" % (20001 + number) for number in TENANTS}
PHP = "<?php header('Content-Type: text/plain'); echo 'Hello from ', posix_getuid();\n"
#: Debian's names have PHP's version in them.
PHP_FPM = (sorted(glob.glob("/usr/sbin/php-fpm*")) or ["php-fpm"])[-1]


def site(setting: Setting, number: int, kind: str) -> Path:
    """Make a tenant's folder, with its application."""
    folder = setting.folder / f"site{number}"
    folder.mkdir(mode=0o755)
    if kind == "php":
        (folder / "index.php").write_text(PHP)
    else:
        shutil.copy(HERE / "hello_uid.py", folder)
        (folder / "hello.wsgi").write_text("from hello_uid import app as application\n")
    return folder


def pyttpd_wsgi(setting: Setting) -> list[list[str]]:
    return tree(
        setting,
        "".join(
            tenant(
                setting,
                "wsgi",
                root=site(setting, number, "wsgi"),
                application="hello_uid:app",
                number=number,
            )
            for number in TENANTS
        ),
    )


def pyttpd_php(setting: Setting) -> list[list[str]]:
    tables = ""
    for number in TENANTS:
        tables += tenant(setting, "fastcgi", root=site(setting, number, "php"), number=number, threads=2)
        tables += (
            f'[vhost.t{number}.fastcgi]\ncommand = ["php-cgi"]\nprocesses = 2\nscripts = [".php"]\n'
            'front_controller = "index.php"\n'
        )
    return tree(setting, tables)


def nginx_pools(setting: Setting, server: str) -> list[str]:
    """nginx with a server for each tenant; `server` has its root, name and socket in it."""
    servers = "".join(
        f"server {{ listen 127.0.0.1:{setting.port}; server_name t{number}.example; "
        + server.format(root=f"{setting.folder}/site{number}", socket=f"{setting.folder}/pool{number}.sock")
        + " }\n"
        for number in TENANTS
    )
    return nginx(setting, server="return 421;", more=servers)


def nginx_uwsgi(setting: Setting) -> list[list[str]]:
    commands = []
    for number in TENANTS:
        folder = site(setting, number, "wsgi")
        uid = str(20001 + number)
        command = [
            "uwsgi",
            "--master",
            "--plugin",
            "python3",
            "--need-app",
            "--die-on-term",
            "--processes",
            "2",
        ]
        command += [
            "--listen",
            "1024",
            "--chdir",
            str(folder),
            "--module",
            "hello_uid:app",
            "--disable-logging",
        ]
        command += ["--socket", f"{setting.folder}/pool{number}.sock", "--chmod-socket=666"]
        commands.append([*command, "--chown-socket", f"{uid}:{uid}", "--uid", uid, "--gid", uid])
    server = "location / {{ include /etc/nginx/uwsgi_params; uwsgi_pass unix:{socket}; }}"
    return [*commands, nginx_pools(setting, server)]


POOL = """
[t{number}]
user = {uid}
group = {uid}
listen = {folder}/pool{number}.sock
listen.backlog = 1024
listen.mode = 0666
pm = dynamic
pm.max_children = 5
pm.start_servers = 2
pm.min_spare_servers = 1
pm.max_spare_servers = 3
"""


def nginx_fpm(setting: Setting) -> list[list[str]]:
    for number in TENANTS:
        site(setting, number, "php")
    pools = "".join(
        POOL.format(number=number, uid=20001 + number, folder=setting.folder) for number in TENANTS
    )
    path = setting.folder / "fpm.conf"
    path.write_text(
        f"[global]\npid = {setting.folder}/fpm.pid\nerror_log = {setting.folder}/fpm.log\n{pools}"
    )
    server = (
        "root {root}; index index.php; location / {{ try_files $uri $uri/ =404; }} "
        # Debian's snippets/fastcgi-php.conf, which can't be included from here
        "location ~ \\.php$ {{ fastcgi_split_path_info ^(.+?\\.php)(/.*)$; try_files $fastcgi_script_name =404; "
        "set $path_info $fastcgi_path_info; fastcgi_param PATH_INFO $path_info; fastcgi_index index.php; "
        "include /etc/nginx/fastcgi.conf; fastcgi_pass unix:{socket}; }}"
    )
    return [[PHP_FPM, "--nodaemonize", "--fpm-config", str(path)], nginx_pools(setting, server)]


def itk_hosts(setting: Setting, kind: str, server: str) -> str:
    """A virtual host with its own uid for each tenant."""
    parts = []
    for number in TENANTS:
        folder, uid = site(setting, number, kind), 20001 + number
        parts.append(
            f"<VirtualHost *:{setting.port}>\nServerName t{number}.example\nAssignUserID #{uid} #{uid}\n"
            + server.format(root=folder)
            + "\n</VirtualHost>"
        )
    return "\n".join(parts)


def itk_wsgi(setting: Setting) -> list[list[str]]:
    # The application is one and the same, and Apache's processes import it before they know whose they are.
    hosts = itk_hosts(setting, "wsgi", "WSGIScriptAlias / {root}/hello.wsgi")
    scripts = "".join(imported(setting.folder / f"site{number}" / "hello.wsgi") for number in TENANTS)
    python_path = f"WSGIPythonPath {setting.folder}/site1\n"
    return [apache(setting, "prefork", ("wsgi",), python_path + scripts + hosts)]


def itk_php(setting: Setting) -> list[list[str]]:
    modules = sorted(glob.glob("/usr/lib/apache2/modules/libphp*.so"))
    php = f"LoadModule php_module {modules[-1]}\nAddHandler application/x-httpd-php .php\nDirectoryIndex index.php\n"
    return [apache(setting, "prefork", (), php + itk_hosts(setting, "php", "DocumentRoot {root}"))]


_FPM = (PHP_FPM, "-v")
WSGI = (
    Peer("pyttpd", pyttpd_wsgi, OUR_VERSION),
    Peer("nginx + uWSGI pools", nginx_uwsgi, NGINX_VERSION),
    Peer("Apache mpm-itk", itk_wsgi, APACHE_VERSION),
)
PHP_PEERS = (
    Peer("pyttpd", pyttpd_php, OUR_VERSION),
    Peer("nginx + php-fpm pools", nginx_fpm, _FPM),
    Peer("Apache mpm-itk", itk_php, APACHE_VERSION),
)
