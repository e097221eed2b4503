"""One request on one connection, with the moments at which its bytes came."""
