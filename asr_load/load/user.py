"""The user that every locustfile is made of."""

from __future__ import annotations

from locust import HttpUser, constant, task
from locust.env import Environment

from asr_load.http.connection import UserConnection
from asr_load.http.exchange import TranscriptionRequest
from asr_load.load import lifecycle  # noqa: F401 (adds the harness to Locust)
from asr_load.load.plugin import current_run
from asr_load.load.target import OwnOptions
from asr_load.realtime.pacer import PACER
from asr_load.stream.record import Record


class SpeechUser(OwnOptions, HttpUser):
    """A person who sends one recording after the other, over one connection.

    Derive from it: a `wait_time`, tasks, `options`, `on_record`. A class that has tasks of its own has those alone,
    else `transcribe`.
    """

    abstract = True
    wait_time = constant(0)

    def __init_subclass__(cls) -> None:
        # Locust adds the tasks of base classes to a class's own.
        cls.tasks = [own for own in cls.tasks if own is not SpeechUser.transcribe] or cls.tasks

    def __init__(self, environment: Environment) -> None:
        PACER.send_due()  # Locust makes many users in one go
        super().__init__(environment)
        self.connection = UserConnection()

    def on_start(self) -> None:
        """Take a number in the test that is running. Call it where a class of one's own has an `on_start` too."""
        self.test = current_run(self.environment)
        self.number = self.test.add_user(type(self).__name__, self.connection)

    @task
    def transcribe(self) -> None:
        """Send the next clip of the data."""
        self.send(self.next_request())

    def next_request(self) -> TranscriptionRequest:
        """The next request, its body built; in an open loop, when it is due. Raises StopUser when all that was asked
        for is handed out."""
        return self.test.next_request(self.number)

    def send(self, request: TranscriptionRequest) -> Record:
        """Send a request, read its answer, and write its record, which `on_record` gets too. A failure is a record;
        what is raised is the locustfile's own, as a gevent.Timeout around the call."""
        record = self.test.send(self.client, self.connection, request)
        self.on_record(record)
        return record

    def on_record(self, record: Record) -> None:
        """Called with each record of this user, when it is written: for a class of one's own."""
