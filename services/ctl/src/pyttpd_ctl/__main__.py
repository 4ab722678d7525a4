from __future__ import annotations

from pyttpd_ctl.main import main

if __name__ == "__main__":
    main()
