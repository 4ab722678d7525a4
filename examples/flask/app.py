"""A site with Flask: copy this folder, and write your own."""

from flask import Flask, request

app = Flask(__name__)


@app.get("/")
def hello() -> str:
    return f"<!doctype html>\n<title>Hello</title>\n<h1>Hello from {request.host.partition(':')[0]}</h1>\n"


@app.get("/you")
def you() -> dict[str, str | None]:
    """The client's own address: no proxy stands between it and this code."""
    return {"address": request.remote_addr}
