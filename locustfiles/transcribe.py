"""The standard load test: each user sends the next clip, reads the streamed transcript, and writes a record.

    locust --headless -u 4 --requests 15      in the checkout: the sample, against http://127.0.0.1:30000

To make your own, copy this file and change it: see docs/locustfile.md.
"""

from locust import constant

import asr_load


class SpeechUser(asr_load.SpeechUser):
    """A user that sends one recording after another."""

    wait_time = constant(0)
