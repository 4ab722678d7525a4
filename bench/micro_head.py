"""What one scan of a head costs: nanoseconds, the best of several rounds, for heads as they are seen in practice.

    python bench/micro_head.py [seconds]

The budget (PLAN of the scanner): less than 1 us for wrk's head and 3 us for a browser's. `match` is the part that the
compiled expression takes.
"""

import sys
import time
from collections.abc import Callable

from pyttpd import head

LIMIT = 32768
EXPRESSION = head.DEFAULT_BOUNDS.head  # what a scan costs at least

WRK = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n"
CURL = b"GET /a/b?c=d HTTP/1.1\r\nHost: blog.example:8080\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n"
BROWSER = b"\r\n".join(
    (
        b"GET /blog/2024/05/a-post?utm_source=x&utm_medium=y HTTP/1.1",
        b"Host: blog.example:8080",
        b"Connection: keep-alive",
        b"Cache-Control: max-age=0",
        b'sec-ch-ua: "Chromium";v="124", "Google Chrome";v="124", "Not-A.Brand";v="99"',
        b"sec-ch-ua-mobile: ?0",
        b'sec-ch-ua-platform: "Linux"',
        b"Upgrade-Insecure-Requests: 1",
        b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0",
        b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
        b"Sec-Fetch-Site: none",
        b"Sec-Fetch-Mode: navigate",
        b"Sec-Fetch-User: ?1",
        b"Sec-Fetch-Dest: document",
        b"Accept-Encoding: gzip, deflate, br, zstd",
        b"Accept-Language: en-GB,en-US;q=0.9,en;q=0.8",
        b"Cookie: session=0123456789abcdef0123456789abcdef; theme=dark",
        b"",
        b"",
    )
)
POST = (
    b"POST /api/items HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 17\r\nHost: api.example\r\n"
    b"Accept: application/json\r\nAuthorization: Bearer 0123456789abcdef\r\n\r\n"
)
ABSOLUTE = b"GET http://blog.example/a HTTP/1.1\r\nHost: blog.example\r\n\r\n"
LARGE = BROWSER[:-2] + b"".join(b"X-Field-%d: %s\r\n" % (i, b"v" * 200) for i in range(100)) + b"\r\n"
TINY_FIELDS = WRK[:-2] + b"a:\r\n" * 127 + b"\r\n"

CASES = {
    "wrk": WRK,
    "curl": CURL,
    "browser": BROWSER,
    "post": POST,
    "absolute-form": ABSOLUTE,
    "128 tiny fields": TINY_FIELDS,
    "large": LARGE,
    "browser, cut in the last field": BROWSER[:-6],
    "browser, last line end missing": BROWSER[:-1],
    "large, cut": LARGE[:-1],
    "refused: two Hosts": BROWSER[:-2] + b"Host: x\r\n\r\n",
    "refused: TLS": b"\x16\x03\x01\x02\x00\x01\x00",
}


def best(call: Callable[[], object], seconds: float) -> float:
    """Nanoseconds of a call in the best of the rounds that fit into `seconds`."""
    count = 1
    while True:
        start = time.perf_counter_ns()
        for _ in range(count):
            call()
        taken = time.perf_counter_ns() - start
        if taken > seconds * 1e9 / 10:
            break
        count *= 2
    result = taken / count
    for _ in range(8):
        start = time.perf_counter_ns()
        for _ in range(count):
            call()
        result = min(result, (time.perf_counter_ns() - start) / count)
    return result


def scan(data: bytes) -> object:
    try:
        return head.scan(data, LIMIT)
    except head.Refused as refused:
        return refused


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 0.2
    idle = best(lambda: scan_nothing(b""), seconds)
    print(f"{'head':32}{'bytes':>7}{'scan ns':>10}{'match ns':>10}")
    for name, data in CASES.items():
        whole = best(lambda data=data: scan(data), seconds) - idle  # type: ignore[misc]
        match = best(lambda data=data: EXPRESSION.match(data, 0, LIMIT), seconds)  # type: ignore[misc]
        print(f"{name:32}{len(data):7}{whole:10.0f}{match:10.0f}")


def scan_nothing(_: bytes) -> None:
    """What scan() in here costs without the scanner."""
    try:
        return
    except head.Refused:
        return


if __name__ == "__main__":
    main()
