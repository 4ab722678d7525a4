"""The vhost role of pyttpd. Its contract: services/vhost/README.md."""
