"""`python -I -m pyttpd_init`: see pyttpd.service for what it may be told. With --plain it starts the whole tree."""

import sys

from pyttpd import service
from pyttpd.roles import Role

from pyttpd_init.init import Init

if "--plain" in sys.argv[1:]:
    from pyttpd_init import plain

    sys.exit(plain.main(sys.argv[1:]))
init = Init()
sys.exit(service.main(service.Program(Role.INIT, init.serve, init.prepare, init.held), sys.argv[1:]))
