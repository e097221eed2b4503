"""A test in Locust: users, one process or a fleet, from start to end."""
