"""The requests of each user class, by the test's options and the class's own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
import numpy as np

from asr_load.apis.realtime import RealtimeRequest, session_url
from asr_load.apis.transcription_request import TranscriptionRequest, request_headers
from asr_load.audio.clip import Clip
from asr_load.audio.dither import NO_DITHER, Pieces, new_dither
from asr_load.audio.encode import re_encoded
from asr_load.audio.shard import Shards
from asr_load.errors import InputError
from asr_load.options.table import PER_USER_CLASS
from asr_load.results.runfile import Speaking, UserClassInfo, option_fields
from asr_load.schedule.mix import parse_mix
from asr_load.schedule.mixed_order import MixedOrder, sample_of
from asr_load.schedule.work import ClipOrder, Job
from asr_load.settings.settings import Settings


@dataclass(frozen=True)
class Target:
    """The settings, including the class's own options, and the clips of a user class."""

    settings: Settings
    shards: Shards

    @cached_property
    def chosen(self) -> np.ndarray:
        """The numbers of the clips to send, selected by --sample."""
        return sample_of(len(self.shards), self.settings.sample, self.settings.seed)

    @cached_property
    def lengths(self) -> np.ndarray:
        """The durations of the chosen clips, in seconds."""
        chosen: np.ndarray = self.shards.lengths[self.chosen]
        return chosen

    def order(self) -> ClipOrder | MixedOrder:
        """The order of the chosen clips, as positions in `chosen`. Raises InputError if --mix needs missing lengths."""
        words: dict[str, Any] = {"shuffle": self.settings.shuffle, "seed": self.settings.seed}
        if self.settings.mix:
            return MixedOrder(self.lengths, parse_mix(self.settings.mix), **words)
        return ClipOrder(len(self.chosen), **words)


class Targets(Mapping[str, Target]):
    """The targets of a test by user class. Values that a run has only once are those of the first class.

    Raises InputError if their data is in several languages, because a run has one word error rate.
    """

    def __init__(self, targets: dict[str, Target]) -> None:
        self._targets = targets
        self.first = next(iter(targets.values()))
        self.several = len(targets) > 1
        languages = {name: target.shards.manifest.options.language for name, target in targets.items()}
        if len(set(languages.values())) > 1:
            shown = ", ".join(f"{language} of {name}" for name, language in languages.items())
            raise InputError(f"the data of all user classes must be in the same language, not {shown}")

    def __getitem__(self, user_class: str) -> Target:
        return self._targets[user_class]

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __len__(self) -> int:
        return len(self._targets)

    @property
    def language(self) -> str:
        return self.first.shards.manifest.options.language

    @property
    def in_parts(self) -> bool:
        """Whether any data has long recordings cut into parts."""
        return any(target.shards.manifest.options.rules.chunk_long is not None for target in self.values())

    @property
    def has_references(self) -> bool:
        """Whether any clip has a reference, so that transcripts can be scored."""
        return any(target.shards.manifest.clips_with_text for target in self.values())

    @property
    def manifests(self) -> dict[str, str]:
        """The SHA-256 of each class's manifest."""
        return {name: target.shards.manifest_sha256 for name, target in self.items()}

    @property
    def data_sha256(self) -> str:
        """The hash of the only manifest, or a combined hash of all."""
        if not self.several:
            return self.first.shards.manifest_sha256
        return hashlib.sha256(repr(sorted(self.manifests.items())).encode()).hexdigest()

    def ids(self) -> set[str]:
        """The ids of all clips."""
        return set().union(*(target.shards.ids() for target in self.values()))

    def info(self) -> list[UserClassInfo]:
        """The entries of run.json, if there are several classes."""
        if not self.several:
            return []
        return [
            UserClassInfo(
                name=name,
                **option_fields(settings.in_effect, PER_USER_CLASS),
                data_sha256=shards.manifest_sha256,
                data_clips=len(target.chosen),
                realtime=msgspec.convert(settings.realtime.to_dict() if settings.realtime else {}, Speaking),
            )
            for name, target in self.items()
            for settings, shards in [(target.settings, target.shards)]
        ]


class RequestSource:
    """Builds the requests of one user class. `id` is the test's; this process is number `worker` of `of` at the start;
    `alone` means that there are no other classes."""

    def __init__(self, name: str, target: Target, *, id: str, worker: int, of: int, alone: bool) -> None:
        settings = target.settings
        self._name, self._id, self._worker, self._of, self._alone = name, id, worker, of, alone
        self._shards, self._unique = target.shards, settings.unique
        self._nonces: dict[int, bytes] = {}
        """Nonces of clips that keep the same bytes during the test."""
        self._order, self._chosen = target.order(), target.chosen
        self._taken = 0
        self._api = settings.request.in_format(target.shards.audio_format)
        self._headers = {**self._api.headers, **settings.headers}
        self._url, self._text_format = settings.host + settings.endpoint, settings.request.text_format
        self._session: RealtimeRequest | None = None
        """The realtime request without its clip; None for other APIs."""
        if settings.realtime is not None:
            self._session = RealtimeRequest(settings.realtime, None, NO_DITHER)
            self._url = session_url(settings.host, settings.endpoint, settings.realtime.dialect)

    def next_clip(self, job: Job) -> int:
        """The number of the next clip, until `take_clip` is called."""
        # With several classes, each advances through its clips only with its users' requests.
        place = self._order.clip(job.seq if self._alone else self._worker + self._taken * self._of)
        return int(self._chosen[place])

    def take_clip(self) -> None:
        """Advance to the next clip."""
        self._taken += 1

    def request(self, job: Job, number: int, **more: Any) -> TranscriptionRequest:
        """Build the request of a clip. Raises OSError, MemoryError, ValueError or InputError if that fails."""
        return self._request(job, self._shards[number], self._nonce(number), **more)

    def trial(self, job: Job, number: int, **more: Any) -> TranscriptionRequest:
        """Build a request with different bytes from those of all other requests, so that the server's caches do not
        contain the test's clips. Raises the same errors as `request`."""
        clip, audio_format = self._shards[number], self._shards.audio_format
        if audio_format == "wav":
            return self._request(job, clip, new_dither(), **more)
        return self._request(job, re_encoded(clip, audio_format), NO_DITHER, **more)

    def _request(self, job: Job, clip: Clip, nonce: bytes, **more: Any) -> TranscriptionRequest:
        session = self._session and self._session._replace(clip=clip, nonce=nonce)
        body = self._api.body(clip, nonce)
        return self._of_clip(job, body, clip.id, reference=clip.text, audio_s=clip.duration_s, realtime=session, **more)

    def _nonce(self, number: int) -> bytes:
        if self._unique == "none":
            return NO_DITHER
        return new_dither() if self._unique == "dither" else self._nonces.setdefault(number, new_dither())

    def without_body(self, job: Job, **more: Any) -> TranscriptionRequest:
        """A request without a body, for the record of one that cannot be built."""
        return self._of_clip(job, [], "", reference="", audio_s=0.0, realtime=self._session, **more)

    def _of_clip(self, job: Job, body: Pieces, clip: str, **more: Any) -> TranscriptionRequest:
        return TranscriptionRequest(
            url=self._url,
            body=body,
            headers=self._headers,
            own_headers=request_headers(self._id, self._worker, job.seq, clip),
            clip=clip,
            seq=job.seq,
            worker=self._worker,
            user_class=self._name,
            text_format=self._text_format,
            **more,
        )
