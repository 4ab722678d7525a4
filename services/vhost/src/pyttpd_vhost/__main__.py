"""`python -I -m pyttpd_vhost --name NAME`: see pyttpd.service for what else it may be told, and pyttpd.seed."""

import sys
from functools import partial

from pyttpd import seed, service
from pyttpd.roles import Role

from pyttpd_vhost.supervisor import serve, warm

main = partial(service.main, service.Program(Role.VHOST, serve))
if sys.argv[1:2] == [seed.OPTION]:
    seed.run(main, "pyttpd_vhost", sys.argv[1:], warm)
sys.exit(main(sys.argv[1:]))
