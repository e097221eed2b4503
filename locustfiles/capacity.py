"""Search for the highest number of streams, or the highest request rate, at which all SLOs hold.

    locust -f locustfiles/capacity.py --headless -u 64 --slo ttft:p95:500 --slo errors:rate:0.01
    locust -f locustfiles/capacity.py --headless -u 200 --request-rate 50 --slo ttft:p95:500

-u is the maximum number of streams to try. With --request-rate, that is the maximum rate, and -u limits the requests in
flight.
"""

from locust import events

import asr_load
from asr_load.load.shapes import CapacityShape, add_search_options

__all__ = ["CapacityShape", "SpeechUser"]

events.init_command_line_parser.add_listener(add_search_options)


class SpeechUser(asr_load.SpeechUser):
    """A user that sends one recording after another."""
