"""pyttpd, the shared library: what every role needs and nothing that only one role knows."""

__version__ = "0.1.0"
