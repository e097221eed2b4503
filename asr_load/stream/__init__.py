"""Parse the bytes of a response into a record."""
