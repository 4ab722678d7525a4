"""The init role of pyttpd. Its contract: services/init/README.md."""
