"""The base class of users in locustfiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from locust import HttpUser, constant, task
from locust.env import Environment

from asr_load.load import startup  # noqa: F401 (attaches asr-load to Locust)
from asr_load.load.own_options import OwnOptions
from asr_load.load.registry import current_run, started_run

if TYPE_CHECKING:
    from asr_load.apis.transcription_request import TranscriptionRequest
    from asr_load.stream.record import Record


class SpeechUser(OwnOptions, HttpUser):
    """A user that sends one recording after another, over one connection.

    Subclasses can set `wait_time` and `options`, and define tasks and `on_record`. A subclass with tasks runs only
    those, otherwise `transcribe`.
    """

    abstract = True
    wait_time = constant(0)

    def __init_subclass__(cls) -> None:
        # Locust adds the tasks of base classes: remove `transcribe` if the class has others.
        cls.tasks = [other for other in cls.tasks if other is not SpeechUser.transcribe] or cls.tasks

    def __init__(self, environment: Environment) -> None:
        from asr_load.http.connection import UserConnection  # late: see "Start" in docs/architecture.md

        if (run := started_run(environment)) is not None:
            run.playback.pacer.send_due()  # because Locust makes many users at once
        super().__init__(environment)
        self.connection = UserConnection()

    def on_start(self) -> None:
        """Register this user in the running test. A subclass's `on_start` must call this."""
        self.test = current_run(self.environment)
        self.number = self.test.add_user(type(self).__name__, self.connection)

    @task
    def transcribe(self) -> None:
        """Send the next clip of the data."""
        self.send(self.next_request())

    def next_request(self) -> TranscriptionRequest:
        """The next request, with its body; an open loop waits until it is due. Raises StopUser after the last one."""
        return self.test.next_request(self.number)

    def send(self, request: TranscriptionRequest) -> Record:
        """Send a request, read its response, and write its record, which `on_record` also gets.

        A failure returns a record too. Only exceptions of the locustfile are raised, such as those of a gevent.Timeout
        around the call.
        """
        record = self.test.send(self.client, self.connection, request)
        self.on_record(record)
        return record

    def on_record(self, record: Record) -> None:
        """Called with each record of this user after it is written. Subclasses can override this."""
