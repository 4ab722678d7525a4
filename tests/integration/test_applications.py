"""Django, Flask and nothing but PEP 3333 in a whole tree, each as its project makes it; Django by docs/wsgi.md."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.applications import Browser, arrives_in_pieces, blocks, environment
from support.tree import ANSWER_WITHIN, Tree, free_port

Plant = Callable[..., Tree]
TENANT_UID = 20001
PYTTPD = [sys.executable, "-I", "-m", "pyttpd_ctl"]

#: What a project of one's own has besides what startproject makes.
VIEWS = """
import hashlib, os, time
from django.conf import settings
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.views.decorators.csrf import csrf_exempt

@csrf_exempt
def upload(request):
    file = request.FILES["file"]
    kept = settings.MEDIA_ROOT / file.name
    kept.parent.mkdir(exist_ok=True)
    with kept.open("wb") as copy:
        for piece in file.chunks():
            copy.write(piece)
    return HttpResponse(f"{file.name} {type(file).__name__} {hashlib.sha256(kept.read_bytes()).hexdigest()}")

def download(request):
    return FileResponse((settings.MEDIA_ROOT / "a.bin").open("rb"))

def stream(request):
    def pieces():
        yield "first"
        while not os.path.exists(settings.MEDIA_ROOT / "go"):
            time.sleep(0.01)
        yield "second"
    return StreamingHttpResponse(pieces())

def boom(request):
    raise RuntimeError("boom in a view")

def who(request):
    return HttpResponse(f"{request.META['REMOTE_ADDR']} {request.is_secure()} {request.build_absolute_uri()}")
"""
URLS = """
from . import views
urlpatterns += [path(f"{name}/", getattr(views, name)) for name in ("upload", "download", "stream", "boom", "who")]
"""


# ---- Django, as docs/wsgi.md says ----------------------------------------------------------------------------------


class Site:
    """A folder that stands for /srv/blog and /etc/pyttpd of the document."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blog = folder / "srv/blog"
        self.config = folder / "etc/pyttpd.toml"
        self.key = ""

    def here(self, text: str) -> str:
        text = text.replace("/srv/blog", str(self.blog)).replace("/etc/pyttpd/pyttpd.toml", str(self.config))
        # The environment is there already, and has the packages.
        text = text.replace("python3 -m venv .venv", f"ln -s {environment()} .venv")
        text = re.sub(r"\.venv/bin/pip install .*", "true", text)
        return text.replace("pyttpd check", " ".join([*PYTTPD, "check"]))

    def run(self, commands: str) -> str:
        """Run what stands behind "# ", in one shell; return what it printed."""
        lines = [line.removeprefix("# ") for line in commands.splitlines() if line.startswith("# ")]
        script = "\n".join(
            ["set -eu", f"cd {self.blog if self.blog.exists() else '/'}", *map(self.here, lines)]
        )
        done = subprocess.run(
            ["bash", "-c", f"{script}\necho KEY=${{SECRET_KEY:-}}"],
            capture_output=True,
            text=True,
            check=False,
            env={
                "PATH": f"{os.path.dirname(sys.executable)}:/usr/sbin:/usr/bin:/sbin:/bin",
                "LANG": "C.UTF-8",
            },
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        output, _, key = done.stdout.rpartition("KEY=")
        self.key = key.strip() or self.key
        return output


@pytest.fixture(scope="module")
def blog() -> Iterator[Site]:
    """The project, made by the document's steps."""
    folder = Path(tempfile.mkdtemp(prefix="pyttpd-blog-", dir="/tmp"))
    folder.chmod(0o755)
    site = Site(folder)
    site.config.parent.mkdir()
    try:
        create, database = blocks("django")
        site.run(create)
        (settings,) = blocks("settings")
        with (site.blog / "mysite/settings.py").open("a") as file:
            file.write(settings)
        (site.blog / "mysite/views.py").write_text(VIEWS)
        with (site.blog / "mysite/urls.py").open("a") as file:
            file.write(URLS)
        site.run(database)
        yield site
    finally:
        shutil.rmtree(folder)


def configuration(site: Site) -> str:
    (text,) = blocks("configuration")
    assert "what step 3 has made" in text
    return site.here(text).replace("what step 3 has made", site.key)


@pytest.mark.root
@pytest.mark.program("setpriv")
def test_the_documents_configuration_is_valid(blog: Site) -> None:
    blog.config.write_text(configuration(blog))
    (text,) = blocks("check")
    assert blog.run(text) == blog.here(text.split("\n", 1)[1])


@pytest.mark.root
@pytest.mark.program("setpriv")
def test_django(blog: Site, plant: Plant) -> None:
    tenants = configuration(blog).partition("[vhost.blog]")
    proxies = 'trusted_proxies = ["127.0.0.1"]\n'
    tree = plant(
        tenants=tenants[1] + "\n" + proxies + tenants[2],
        hosts=("blog.localhost", "static.blog.localhost"),
    )
    browser = Browser(tree, "blog.localhost")

    # the admin: what it asks for, logging in with cookies, its pages, a form that writes into the database
    answer = browser.get("/admin/")
    assert (answer.status, answer.headers["location"]) == (302, "/admin/login/?next=/admin/")
    assert (
        b"Please enter the correct username"
        in browser.post("/admin/login/", username="admin", password="x").body
    )
    answer = browser.post("/admin/login/?next=/admin/", username="admin", password="change-me")
    assert (answer.status, answer.headers["location"]) == (302, "/admin/")
    assert b"Site administration" in browser.get("/admin/").body
    assert browser.post("/admin/auth/group/add/", name="J\u00f6rg's").status == 302
    assert "J\u00f6rg&#x27;s" in browser.get("/admin/auth/group/").body.decode()
    assert Browser(tree, "blog.localhost").get("/admin/auth/group/").status == 302

    # its static files, by WhiteNoise and by the vhost beside it
    page = browser.get("/admin/").body.decode()
    linked = re.findall(r'(?:href|src)="(/static/[^"]+)"', page)
    assert len(linked) > 5
    for path in linked:
        name = path.removeprefix("/static/")
        content = (blog.blog / "static" / name).read_bytes()
        whitenoise, ours = browser.get(path), tree.get("static.blog.localhost", f"/{name}")
        assert (whitenoise.status, whitenoise.body) == (ours.status, ours.body) == (200, content)
        types = [each.headers["content-type"].partition(";")[0] for each in (whitenoise, ours)]
        assert types[0] == types[1]

    # an upload that is too large for memory, and the file sent back
    content = os.urandom(4_000_000)
    answer = browser.upload("/upload/", "a.bin", content)
    digest = hashlib.sha256(content).hexdigest()
    assert answer.body.decode() == f"a.bin TemporaryUploadedFile {digest}"
    assert (blog.blog / "data/media/a.bin").stat().st_uid == TENANT_UID
    answer = browser.get("/download/")
    assert (answer.body, answer.headers["content-length"]) == (content, "4000000")
    arrives_in_pieces(tree, "blog.localhost", "/stream/", blog.blog / "data/media/go")

    # behind a proxy, without a setting in the project
    browser.headers = {"X-Forwarded-For": "6.6.6.6, 192.0.2.7", "X-Forwarded-Proto": "https"}
    assert browser.get("/who/").body == b"192.0.2.7 True https://blog.localhost/who/"

    # a fault: Django answers it, and its traceback is in the tenant's log
    answer = browser.get("/boom/")
    assert answer.status == 500
    assert b"boom" not in answer.body
    tree.wait_for(lambda: "RuntimeError: boom in a view" in tree.log())
    tree.expect("output", "RuntimeError")


@pytest.mark.root
@pytest.mark.program("setpriv")
def test_a_project_that_nobody_has_touched(plant: Plant) -> None:
    """startproject and nothing else: the page that says that it worked, the admin's login, and Django's own 404."""
    folder = Path(tempfile.mkdtemp(prefix="pyttpd-fresh-", dir="/tmp"))
    try:
        command = [f"{environment()}/bin/django-admin", "startproject", "fresh", str(folder)]
        subprocess.run(command, check=True, env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"})
        for path in (folder, *folder.rglob("*")):
            os.chown(path, TENANT_UID, TENANT_UID)
        tree = plant(
            tenants=f"""
            [vhost.fresh]
            hosts = ["fresh.localhost"]
            uid = {TENANT_UID}
            kind = "wsgi"
            root = "{folder}"
            application = "fresh.wsgi:application"
            virtualenv = "{environment()}"
            writable = ["{folder}"]
            """,
            hosts=("fresh.localhost",),
        )
        assert b"The install worked successfully" in tree.get("fresh.localhost").body
        # no database yet: Django makes the file, and says that it is empty
        assert (
            b"no such table"
            in Browser(tree, "fresh.localhost").post("/admin/login/", username="a", password="b").body
        )
        assert b"Page not found" in tree.get("fresh.localhost", "/nowhere").body
        tree.expect("output", "Traceback", "Warning")
    finally:
        shutil.rmtree(folder)


# ---- Flask ---------------------------------------------------------------------------------------------------------

FLASK = """
import hashlib, io, os, time
from flask import Flask, Response, request, send_file, session, stream_with_context, url_for

app = Flask(__name__, instance_path=os.path.join(os.path.dirname(__file__), "data"))
app.secret_key = os.environ["SECRET_KEY"]

@app.post("/login")
def login():
    session["name"] = request.form["name"]
    return "in"

@app.get("/name")
def name():
    return session.get("name", "nobody")

@app.post("/upload")
def upload():
    file = request.files["file"]
    kept = os.path.join(app.instance_path, file.filename)
    file.save(kept)
    return hashlib.sha256(open(kept, "rb").read()).hexdigest()

@app.put("/body")
def body():
    return hashlib.sha256(request.get_data()).hexdigest()

@app.get("/file")
def file():
    return send_file(os.path.join(app.instance_path, "a.bin"), conditional=True)

@app.get("/memory")
def memory():
    return send_file(io.BytesIO(b"in memory"), download_name="m.txt")

@app.get("/stream")
def stream():
    @stream_with_context
    def pieces():
        yield "first"
        while not os.path.exists(os.path.join(app.instance_path, "go")):
            time.sleep(0.01)
        yield "second " + request.path
    return Response(pieces())

@app.get("/boom")
def boom():
    raise RuntimeError("boom in a view")

@app.get("/who")
def who():
    return f"{request.remote_addr} {request.is_secure} {url_for('who', _external=True)}"
"""
FACTORY = """
from flaskapp import app
from werkzeug.middleware.proxy_fix import ProxyFix

fixed = ProxyFix(app, x_for=1, x_proto=1, x_host=1)
"""


def flask_tenants(proxies: str = "") -> str:
    return "".join(
        f"""
        [vhost.{name}]
        hosts = ["{name}.localhost"]
        uid = 2000{number}
        kind = "wsgi"
        root = "shop"
        application = "{application}"
        virtualenv = "{environment()}"
        writable = ["shop/data"]
        env = {{ SECRET_KEY = "secret" }}
        {proxies}
        [vhost.{name}.pool]
        max_threads = 4
        """
        for number, (name, application) in enumerate((("shop", "flaskapp:app"), ("fixed", "fixed:fixed")), 3)
    )


def test_flask(plant: Plant) -> None:
    tree = plant(
        tenants=flask_tenants('trusted_proxies = ["127.0.0.1"]'),
        files={
            "shop/flaskapp.py": FLASK,
            "shop/fixed.py": FACTORY,
            "shop/static/style.css": "body {}",
            "shop/data/.keep": "",
        },
        hosts=("shop.localhost", "fixed.localhost"),
        ordinary=True,
    )
    browser = Browser(tree, "shop.localhost")
    assert browser.get("/name").body == b"nobody"
    assert browser.post("/login", name="J\u00f6rg").body == b"in"
    assert browser.get("/name").body.decode() == "J\u00f6rg"
    assert Browser(tree, "shop.localhost", cookies={"session": "forged"}).get("/name").body == b"nobody"
    assert browser.get("/static/style.css").body == b"body {}"

    content = os.urandom(3_000_000)
    digest = hashlib.sha256(content).hexdigest().encode()
    assert browser.upload("/upload", "a.bin", content).body == digest
    assert browser.ask("PUT", "/body", content).body == digest
    pieces = [content[at : at + 70_000] for at in range(0, len(content), 70_000)]
    chunked = browser.ask("PUT", "/body", pieces, {"Transfer-Encoding": "chunked"})
    assert chunked.body == digest
    answer = browser.get("/file")
    assert (answer.status, answer.body) == (200, content)
    answer = browser.ask("GET", "/file", headers={"Range": "bytes=10-19"})
    assert (answer.status, answer.body, answer.headers["content-range"]) == (
        206,
        content[10:20],
        "bytes 10-19/3000000",
    )
    assert browser.ask("HEAD", "/file").headers["content-length"] == "3000000"
    assert browser.ask("GET", "/file", headers={"If-None-Match": answer.headers["etag"]}).status == 304
    assert browser.get("/memory").body == b"in memory"
    arrives_in_pieces(tree, "shop.localhost", "/stream", tree.folder / "shop/data/go")

    for host in ("shop.localhost", "fixed.localhost"):
        proxied = Browser(tree, host, {"X-Forwarded-For": "6.6.6.6, 192.0.2.7", "X-Forwarded-Proto": "https"})
        assert proxied.get("/who").body == f"192.0.2.7 True https://{host}/who".encode()
    answer = browser.get("/boom")
    assert (answer.status, b"boom" in answer.body) == (500, False)
    tree.wait_for(lambda: "RuntimeError: boom in a view" in tree.log())
    tree.expect("output", "RuntimeError")


def test_an_application_that_believes_everybody_is_not_lied_to(plant: Plant) -> None:
    """ProxyFix in front of a Flask application, nobody in front of pyttpd: the client's word doesn't get there."""
    tree = plant(
        tenants=flask_tenants(),
        files={"shop/flaskapp.py": FLASK, "shop/fixed.py": FACTORY, "shop/data/.keep": ""},
        hosts=("fixed.localhost",),
        ordinary=True,
    )
    headers = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example"}
    answer = Browser(tree, "fixed.localhost", headers).get("/who")
    assert answer.body == b"127.0.0.1 False http://fixed.localhost/who"
    tree.wait_for(lambda: "trusted_proxies names nobody" in tree.log())


# ---- nothing but PEP 3333 ------------------------------------------------------------------------------------------

PURE = '''
"""An application that zips what it is sent, under wsgiref's validator."""
import io, zipfile
from wsgiref.util import application_uri, request_uri
from wsgiref.validate import validator

@validator
def application(environ, start_response):
    if environ["PATH_INFO"] == "/boom":
        raise RuntimeError("boom in the application")
    size = int(environ.get("CONTENT_LENGTH") or 0)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("uri.txt", request_uri(environ))
        archive.writestr("body", environ["wsgi.input"].read(size))
    made.seek(0)
    environ["wsgi.errors"].write(f"zipped {size} bytes\\n")
    start_response("200 OK", [("Content-Type", "application/zip")])
    return environ["wsgi.file_wrapper"](made)
'''


@pytest.mark.parametrize(
    "ordinary",
    [pytest.param(False, id="as-root", marks=pytest.mark.root), pytest.param(True, id="ordinary-user")],
)
def test_nothing_but_pep_3333(plant: Plant, ordinary: bool) -> None:
    tree = plant(
        tenants="""
        [vhost.pure]
        hosts = ["pure.localhost"]
        uid = 20001
        kind = "wsgi"
        root = "pure"
        application = "pure:application"
        error_pages = { 500 = "sorry.html" }
        """,
        files={"pure/pure.py": PURE, "pure/sorry.html": "<p>Sorry"},
        hosts=("pure.localhost",),
        ordinary=ordinary,
    )
    body = os.urandom(1_000_000)
    answer = tree.request(
        "POST", "pure.localhost", "/caf%C3%A9?a=b", body, {"Content-Type": "application/octet-stream"}
    )
    with zipfile.ZipFile(io.BytesIO(answer.body)) as archive:
        assert archive.read("body") == body
        assert archive.read("uri.txt") == b"http://pure.localhost/caf%C3%A9?a=b"
    tree.wait_for(lambda: "output zipped 1000000 bytes" in tree.log())
    # a fault: the page that the tenant has made for it, and in its log who had asked for what, and the traceback
    answer = tree.get("pure.localhost", "/boom?x")
    assert (answer.status, answer.body) == (500, b"<p>Sorry")
    tree.wait_for(lambda: "RuntimeError: boom in the application" in tree.log())
    log = tree.log()
    fault = log[log.index("application failed") :]
    assert fault.startswith(
        "application failed method=GET target=/boom?x client=127.0.0.1 error=RuntimeError"
    )
    assert "Traceback (most recent call last):" in fault
    tree.expect("output", "RuntimeError")


# ---- behind a real proxy -------------------------------------------------------------------------------------------

TELLING = """
import json

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({key: value for key, value in environ.items() if isinstance(value, str)}).encode()]
"""


@pytest.mark.program("nginx")
def test_behind_nginx_as_documented(plant: Plant) -> None:
    """A client at 127.0.0.2 that lies in every way it can; nginx at 127.0.0.1 with the document's lines."""
    tree = plant(
        tenants="""
        [vhost.told]
        hosts = ["told.localhost"]
        uid = 20001
        kind = "wsgi"
        root = "told"
        application = "told:application"
        trusted_proxies = ["127.0.0.1"]
        """,
        files={"told/told.py": TELLING},
        hosts=("told.localhost",),
        ordinary=True,
    )
    (location,) = blocks("nginx")
    port = free_port()
    folder = tree.folder / "nginx"
    folder.mkdir()
    (folder / "nginx.conf").write_text(
        f"""
        daemon off; pid {folder}/pid; error_log {folder}/error.log;
        events {{}}
        http {{
            access_log off;
            client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
            uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
            server {{
                listen 127.0.0.1:{port};
                {location.replace("http://127.0.0.1:8080", f"http://127.0.0.1:{tree.port}")}
            }}
        }}
        """
    )
    command = ["nginx", "-p", str(folder), "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]
    nginx = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        tree.wait_for(lambda: answers(port))
        connection = http.client.HTTPConnection(
            "127.0.0.1", port, timeout=ANSWER_WITHIN, source_address=("127.0.0.2", 0)
        )
        with contextlib.closing(connection):
            lies = {
                "X-Forwarded-For": "6.6.6.6, 127.0.0.1",
                "X-Forwarded-Proto": "https",
                "X-Forwarded-Host": "evil.example",
                "X-Forwarded-Port": "99",
                "X-Real-IP": "6.6.6.6",
                "Forwarded": "for=6.6.6.6;host=evil.example;proto=https",
            }
            connection.request("GET", "/x", headers={"Host": "told.localhost", **lies})
            told = json.loads(connection.getresponse().read())
    finally:
        nginx.terminate()
        nginx.wait()
    seen = {key: told.get(key) for key in ("REMOTE_ADDR", "SERVER_NAME", "SERVER_PORT", "HTTP_HOST", "HTTPS")}
    assert seen == {
        "REMOTE_ADDR": "127.0.0.2",
        "SERVER_NAME": "told.localhost",
        "SERVER_PORT": str(port),
        "HTTP_HOST": "told.localhost",
        "HTTPS": None,
    }
    assert told["wsgi.url_scheme"] == "http"
    assert told["HTTP_X_FORWARDED_FOR"] == told["HTTP_X_REAL_IP"] == "127.0.0.2"
    assert "HTTP_FORWARDED" not in told
    # and in the access log
    tree.wait_for(lambda: "127.0.0.2 - - [" in tree.log())


def answers(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port)):
        return True
