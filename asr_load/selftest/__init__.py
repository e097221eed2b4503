"""Is the harness right? Held against a server that knows the truth."""
