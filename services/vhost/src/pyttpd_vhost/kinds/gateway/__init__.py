"""What the kinds share that ask an application in another process: cgi, fastcgi, scgi; and wsgi its names."""
