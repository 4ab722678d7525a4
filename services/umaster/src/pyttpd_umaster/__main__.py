"""`python -I -m pyttpd_umaster`: see pyttpd.service for what it may be told."""

import sys

from pyttpd import service
from pyttpd.roles import Role

from pyttpd_umaster.umaster import serve

sys.exit(service.main(service.Program(Role.UMASTER, serve), sys.argv[1:]))
