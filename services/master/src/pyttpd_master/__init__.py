"""The master role of pyttpd. Its contract: services/master/README.md."""
