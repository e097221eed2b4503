"""From the bytes of an answer to a record."""
