"""How long a test waits for an event that must happen."""

PATIENCE_S = 120.0
"""Limit in seconds on a single wait. It only bounds a hang: on a busy machine a process may take ten times as long as
on an idle one, so no test expects an event sooner."""
