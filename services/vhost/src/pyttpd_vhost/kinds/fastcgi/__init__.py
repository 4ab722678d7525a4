"""FastCGI 1.0, the server's side: an application that listens on a Unix socket answers."""
