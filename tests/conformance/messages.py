"""Messages to try: heads from heads.py with bodies that fit, bodies that don't, and what follows; mutants of these."""

import re

from hypothesis import assume
from hypothesis import strategies as st

from conformance.heads import NASTY, likely_heads, valid_heads

_SIZES = [b"5", b"5", b"005", b"05"]
_ODD_SIZES = [
    *(
        b"",
        b"5 ",
        b" 5",
        b"+5",
        b"-5",
        b"0x5",
        b"5_",
        b"f" * 15,
        b"f" * 16,
        b"0" * 20 + b"5",
        b"4",
        b"6",
        b"g",
        b"\t5",
    ),
]
_EXTENSIONS = [
    *(
        b"",
        b"",
        b"",
        b"",
        b";a",
        b";a=b",
        b';a="b"',
        b";a;b=c",
        b'; a="b c;\\""',
        b";\ta = b",
        b" ;a",
        b';a="\xe9\t"',
    ),
]
_ODD_EXTENSIONS = [
    *(
        b";",
        b";;",
        b";a=",
        b";=b",
        b" ",
        b";a ",
        b';a="',
        b';a="b"c',
        b";a b",
        b";\xe9",
        b";a\0",
        b";a\x01",
        b";[a]",
    ),
    *(b";" + b"a" * 253, b";" + b"a" * 300, b';a="\x7f"', b';a="\\', b";a\r", b"\r", b";a=b=c", b';a="\r"'),
]
_TRAILERS = [b"", b"", b"A: b", b"A: b\r\nC:", b"Expect: x", b"X-A:\t \xe9 b \t", b"connection: close"]
_ODD_TRAILERS = [
    *(b"A : b", b" A: b", b": b", b"A", b"A: b\r\n c", b"A: b\0", b"A: b\x0b", b"A: \rb", b"a\xe9: b", b"\r"),
    *(
        b"Content-Length: 5",
        b"transfer-encoding: chunked",
        b"Host: a",
        b"A: " + b"b" * 8190,
        b"a:\r\n" * 2100 + b"a:",
    ),
]
_ENDS = [b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n", b"\n\r", b"", b"\r\n\r\n"]
_NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"


def _seldom(odd: bool, good: list[bytes], bad: list[bytes]) -> st.SearchStrategy[bytes]:
    return st.one_of(*[st.sampled_from(good)] * 8, st.sampled_from(bad)) if odd else st.sampled_from(good)


@st.composite
def chunked_bodies(draw: st.DrawFn, *, odd: bool) -> bytes:
    """Chunked bodies; with `odd` about half of them have a fault."""
    end = st.sampled_from(_ENDS) if odd and draw(st.integers(0, 4)) == 0 else st.just(b"\r\n")
    body = b""
    for _ in range(draw(st.integers(0, 3))):
        body += (
            draw(_seldom(odd, _SIZES, _ODD_SIZES))
            + draw(_seldom(odd, _EXTENSIONS, _ODD_EXTENSIONS))
            + draw(end)
        )
        body += draw(st.sampled_from([b"hello", b"\r\n\r\n\n", b"0\r\n\r\n", b";a\r\nb"])) + draw(end)
    body += draw(_seldom(odd, [b"0", b"0", b"000"], [b"", b"0 ", b"00x"]))
    body += draw(_seldom(odd, _EXTENSIONS, _ODD_EXTENSIONS)) + draw(end)
    trailers = draw(_seldom(odd, _TRAILERS, _ODD_TRAILERS))
    return body + (trailers + draw(end) if trailers else b"") + draw(end)


@st.composite
def messages(draw: st.DrawFn, *, odd: bool) -> bytes:
    """One message. Its body fits its head, unless something is odd."""
    head = draw(likely_heads() if odd and draw(st.integers(0, 3)) == 0 else valid_heads())
    fields = head.lower()
    assume(odd or fields.count(b"\ncontent-type:") < 2)
    if b"\ntransfer-encoding:" in fields:
        return head + draw(chunked_bodies(odd=odd))
    length = re.search(rb"\ncontent-length:[ \t]*0*([0-9]?)[ \t]*\r\n", fields)
    body = b"hello, world"[: int(length[1] or b"0")] if length else b""
    return head + body[: draw(st.sampled_from([len(body)] * 6 + [1])) if odd else None]


@st.composite
def streams(draw: st.DrawFn, *, odd: bool = True) -> bytes:
    """What a connection may bring: one to three messages, one of them perhaps mutated."""
    data = b"".join(draw(messages(odd=odd)) for _ in range(draw(st.integers(1, 2)))) + _NEXT
    if odd:
        for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
            at = draw(st.integers(0, len(data)))
            data = data[:at] + draw(st.sampled_from([b"", *NASTY])) + data[at + draw(st.integers(0, 2)) :]
    return data
