"""The part that knows Locust."""
