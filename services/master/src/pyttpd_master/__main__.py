"""`python -I -m pyttpd_master`: see pyttpd.service for what it may be told."""

import sys

from pyttpd import service
from pyttpd.roles import Role

from pyttpd_master.master import Master

master = Master()
sys.exit(service.main(service.Program(Role.MASTER, master.serve, master.prepare, master.desk), sys.argv[1:]))
