"""Heads as they are seen in practice, and some that aren't."""

from __future__ import annotations

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

HEADS = {
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
