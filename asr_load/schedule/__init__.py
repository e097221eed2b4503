"""Decide what to send next and when, without a clock, Locust or sockets."""
