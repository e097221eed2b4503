"""Run a test in Locust, in one process or a fleet."""

import sys

from asr_load import signals

# Catch signals early: Locust sets its handlers only when a test begins, and this package takes a second to import. A
# program that uses Locust as a library keeps its own handlers.
if "locust.main" in sys.modules:
    signals.catch_before_test()
