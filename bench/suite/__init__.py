"""pyttpd beside what people would use instead: `make bench`. See __main__.py."""
