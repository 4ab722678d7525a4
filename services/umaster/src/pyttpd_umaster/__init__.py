"""The umaster role of pyttpd. Its contract: services/umaster/README.md."""
