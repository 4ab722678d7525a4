"""The listener role of pyttpd. Its contract: services/listener/README.md."""
