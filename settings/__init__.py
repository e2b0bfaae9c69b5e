"""What Django needs to start: typed settings, urls, wsgi."""
