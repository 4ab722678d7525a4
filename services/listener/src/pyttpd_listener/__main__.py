"""`python -I -m pyttpd_listener`: see pyttpd.service for what it may be told."""

import sys

from pyttpd import service
from pyttpd.roles import Role

from pyttpd_listener.listener import serve

sys.exit(service.main(service.Program(Role.LISTENER, serve), sys.argv[1:]))
