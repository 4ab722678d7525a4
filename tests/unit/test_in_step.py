"""Numbers that two roles have to agree on, and that neither can import from the other."""

from __future__ import annotations

from pyttpd_umaster import router
from pyttpd_vhost import worker


def test_a_worker_asks_for_no_more_credit_than_umaster_grants() -> None:
    assert worker.MAX_CREDIT == router.MAX_CREDIT
    assert worker.CREDIT <= router.MAX_CREDIT
