"""The operator's command, `pyttpd`."""
