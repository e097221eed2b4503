"""Send one request on one connection, and time stamp the bytes of its response."""
