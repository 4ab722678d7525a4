"""Two kinds of protocol error, since two different parties are at fault (HOUSE style 4)."""


class ProtocolError(Exception):
    """Something went against PROTOCOL.md."""


class LocalProtocolError(ProtocolError):
    """We were about to send what our own tables forbid: a fault in this program. It ends the process."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what it may not. It loses its channel; the process lives on.

    `reason` is one of a few fixed words, fit for a metric's label; the message says the details. `told`: the log has
    the same of this peer already.
    """

    def __init__(self, reason: str, detail: str, *, told: bool = False) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.told = told
