"""Locust's web UI: its guard and the Streaming tab."""
