"""Locustfiles for Locust's option -f."""
