"""`python -I -m pyttpd_vhost --name NAME`: see pyttpd.service for what else it may be told."""

import sys

from pyttpd import service
from pyttpd.roles import Role

from pyttpd_vhost.supervisor import serve

sys.exit(service.main(service.Program(Role.VHOST, serve), sys.argv[1:]))
