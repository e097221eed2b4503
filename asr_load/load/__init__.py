"""A test in Locust: users, one process or a fleet, from start to end."""

import sys

from asr_load import signals

BEFORE_TEST = " before any test had begun"

# Locust sets handlers when a test begins, and this room takes a second to import. A program that only uses Locust as a
# library keeps its own handlers.
if "locust.main" in sys.modules:
    signals.catch()
    signals.on_signal(signals.leave, BEFORE_TEST)
