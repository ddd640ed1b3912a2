"""HTTP below the routes: connections, bodies, keys, the access log, metrics and traces."""
