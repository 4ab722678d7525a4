"""The clients: wrk for how much, one that asks at a constant rate for how long, and a careful one."""

from __future__ import annotations

import http.client
import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass

from suite.machine import CLIENT_CORE, READY_WITHIN
from suite.rate import Client

_RATE = re.compile(r"Requests/sec:\s+([\d.]+)")
_TOTAL = re.compile(r"(\d+) requests in ")
#: On a busy machine the signal may come before wrk has begun, and it says nothing then.
ATTEMPTS = 3
#: With fewer right answers than so many, or than half of all, nothing is said of how long they took at a constant rate.
ENOUGH = 100
#: A thread of wrk's keeps its connections; so each of these stays with one host.
HOST_BY_THREAD = """
local hosts, threads = { %s }, 0
function setup(thread) threads = threads + 1; thread:set("host", hosts[threads]) end
function init() wrk.headers["Host"] = host end
"""
#: What browsers send: 32 of them, each with a cookie of its own, for pages, pictures and scripts by turns, and for
#: another path each time. `new`: each request is another browser's. Everything is prepared, so it costs wrk nothing.
BROWSERS = """
local tails, count, new = {}, 0, %s
local kinds = {
  {"document", "navigate", "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"},
  {"image", "no-cors", "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"},
  {"script", "no-cors", "*/*"},
}
function init()
  for browser = 1, 32 do
    for _, kind in ipairs(kinds) do
      local whole = wrk.format("GET", "/", {
        ["Connection"] = "keep-alive",
        ["User-Agent"] = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)"
          .. " Chrome/130.0 Safari/537.36",
        ["Accept"] = kind[3],
        ["Referer"] = "http://127.0.0.1/a/page",
        ["Sec-Fetch-Site"] = "same-origin",
        ["Sec-Fetch-Mode"] = kind[2],
        ["Sec-Fetch-Dest"] = kind[1],
        ["Accept-Encoding"] = "gzip, deflate, br, zstd",
        ["Accept-Language"] = "en-GB,en;q=0.9,de;q=0.8",
        ["Cookie"] = string.format("session=%%032d; theme=dark", browser),
      })
      tails[#tails + 1] = whole:match(" HTTP/1.1.*"):sub(1, -3)
    end
  end
end
function request()
  count = count + 1
  local line = "GET " .. wrk.path .. "?" .. count .. tails[count %% #tails + 1]
  return line .. (new and "X-Request: " .. count .. "\\r\\n\\r\\n" or "\\r\\n")
end
"""


class WrongAnswer(Exception):
    """A server said something else than it should."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked for, and what must come: of each host the whole body, byte by byte."""

    port: int
    path: str
    bodies: Mapping[str, bytes]

    @property
    def host(self) -> str:
        """The first one."""
        return next(iter(self.bodies))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.path}"

    def wait(self) -> None:
        """Wait until what is behind a proxy answers, too."""
        end = time.monotonic() + READY_WITHIN
        while True:
            try:
                self.check()
                return
            except (WrongAnswer, OSError, http.client.HTTPException):
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def check(self) -> None:
        """Ask each host three times (on one connection, if it is kept), and compare every byte."""
        for host, expected in self.bodies.items():
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            try:
                for _ in range(3):
                    connection.request("GET", self.path, headers={"Host": host})
                    response = connection.getresponse()
                    body = response.read()
                    if response.status != 200 or body != expected:
                        raise WrongAnswer(
                            f"{self.url} of {host}: {response.status}, {len(body)} bytes: {body[:80]!r}"
                        )
            finally:
                connection.close()


@dataclass(frozen=True, slots=True)
class Load:
    """Requests per second, all requests, and errors, of one round."""

    rate: float
    requests: int
    errors: int


def pinned(command: list[str], core: str | None) -> list[str]:
    return command if core is None else ["taskset", "-c", core, *command]


def wrk(
    target: Target, seconds: float, connections: int, *, close: bool, pin: bool = True, script: str = ""
) -> Load:
    """As many requests as go, by wrk. Whatever isn't 2xx, or a whole response, is an error.

    script: what is asked for instead, in Lua, by one thread. wrk takes whole seconds only; it is asked for more, and
    ended by a signal, after which it says what it always does.
    """
    hosts = [target.host] if script else list(target.bodies)
    command = ["timeout", "--signal=INT", "--preserve-status", f"{seconds:g}", "wrk", f"-t{len(hosts)}"]
    command += [f"-c{connections}", f"-d{seconds + 60:.0f}s", "--timeout", "20s"]
    if close:
        command += ["-H", "Connection: close"]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as lua:
        lua.write(script or HOST_BY_THREAD % ", ".join(f'"{host}"' for host in hosts))
        lua.flush()
        command = pinned([*command, "-s", lua.name, target.url], CLIENT_CORE if pin else None)
        tries = (
            subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(ATTEMPTS)
        )
        said = next((done.stdout for done in tries if done.stdout), "")
    found, total = _RATE.search(said), _TOTAL.search(said)
    if found is None or total is None:
        raise WrongAnswer(f"{target.url}: wrk says {said[:200]!r}")
    errors = sum(int(number) for number in re.findall(r"Non-2xx or 3xx responses: (\d+)", said))
    for line in re.findall(r"Socket errors: (.*)", said):
        # Who closes after each answer is counted as a read error by wrk where the server resets; all else is one, too.
        errors += sum(int(number) for number in re.findall(r"\d+", line))
    return Load(float(found[1]), int(total[1]), errors)


@dataclass(frozen=True, slots=True)
class Latency:
    """At a constant rate: what each right answer took (s), and how many others there were."""

    took: list[float]
    errors: int


def quantiles(took: list[float]) -> dict[str, float]:
    """The median of these, what one in a hundred exceeds, and what one in a thousand does."""
    cuts = statistics.quantiles(took, n=1000, method="inclusive")
    return {"p50": cuts[499], "p99": cuts[989], "p99.9": cuts[998]}


def constant_rate(
    target: Target, rate: float, seconds: float, connections: int = 32, *, close: bool = False
) -> Latency:
    """Ask at `rate` requests/s, whatever the server does. The client's process is on its own core meanwhile."""
    request = f"GET {target.path} HTTP/1.1\r\nHost: {target.host}\r\n"
    request += "Connection: close\r\n\r\n" if close else "\r\n"
    address = ("127.0.0.1", target.port)
    client = Client(address, request.encode(), target.bodies[target.host], close=close)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {int(CLIENT_CORE)})
    try:
        client.run(rate, seconds, connections)
    finally:
        os.sched_setaffinity(0, before)
    if len(client.took) < max(2, min(ENOUGH, rate * seconds / 2)):
        raise WrongAnswer(f"{target.url}: {len(client.took)} answers at {rate:.0f}/s in {seconds:.1f} s")
    return Latency(client.took, client.errors)
