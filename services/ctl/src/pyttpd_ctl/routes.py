"""Who gets a host, and why: the same scanner and the same map that listener and umaster use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyttpd.config.errors import printable
from pyttpd.head import Refused, authority

if TYPE_CHECKING:
    from pyttpd.config.model import Config


@dataclass(frozen=True, slots=True)
class Route:
    """What becomes of a request for `asked`: the host as pyttpd sees it, the vhost or None, the reason, and the status
    that the listener answers if there is no vhost.
    """

    asked: str
    host: str | None
    vhost: str | None
    why: str
    status: int | None


def routes(config: Config, asked: tuple[str, ...]) -> list[Route]:
    """Look each of `asked` up as umaster would. "" is a request of HTTP/1.0 without Host."""
    hosts = config.host_map()
    found = []
    for each in asked:
        shown = printable(each, 253)
        host = ""
        if each:
            try:
                host, _port = authority(each.encode("ascii"))
            except UnicodeEncodeError:
                found.append(
                    Route(shown, None, None, "malformed host: browsers send punycode (xn--...)", 400)
                )
                continue
            except Refused as refusal:
                found.append(Route(shown, None, None, refusal.reason, refusal.status))
                continue
        vhost, why = hosts.lookup(host)
        found.append(Route(shown, host, vhost, why, None if vhost else 421))
    return found
