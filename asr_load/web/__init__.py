"""The web UI: its guard, the Streaming tab, and the report pages."""
