"""The highest number of streams, or the highest request rate, at which all SLOs hold.

    locust -f locustfiles/capacity.py --headless -u 64 --slo ttft:p95:500 --slo errors:rate:0.01
    locust -f locustfiles/capacity.py --headless -u 200 --request-rate 50 --slo ttft:p95:500

-u is the most streams that are tried; with --request-rate, that is the highest rate, and -u the most in flight.
"""

import asr_load
from asr_load.load.capacity_shape import CapacityShape

__all__ = ["CapacityShape", "SpeechUser"]


class SpeechUser(asr_load.SpeechUser):
    """A person who sends one recording after the other."""
