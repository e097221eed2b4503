"""Check the options and data of a test before sending anything: options first, without the modules of a test."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from locust.env import Environment
from locust.runners import WorkerRunner

from asr_load.audio.prepared import read_manifest
from asr_load.errors import InputError
from asr_load.load.own_options import OwnOptions
from asr_load.options.parser import for_class
from asr_load.results.folders import RESULTS
from asr_load.results.record_file import RECORDS
from asr_load.settings.credentials import Credentials, Secrets
from asr_load.settings.host import check_host
from asr_load.settings.settings import Settings, check_writable, read_settings
from asr_load.threads import in_thread

if TYPE_CHECKING:
    from asr_load.audio.shard import Shards
    from asr_load.load.messages import FleetTest
    from asr_load.load.target import Target, Targets


def check_format(settings: Settings, audio_format: str) -> None:
    """Raise InputError if clips of this format (one of AUDIO_FORMATS) cannot be sent with these settings."""
    settings.request.in_format(audio_format)
    if settings.unique != "none" and audio_format != "wav":
        raise InputError(
            f"--data {settings.data} is {audio_format}, but --unique {settings.unique} needs WAV: prepare it as WAV, or"
            " add --unique none, with which responses may come from the server's cache"
        )


def check_new(results: Path) -> None:
    """Raise InputError if a results folder already holds a run."""
    if (results / RECORDS).exists():
        raise InputError(f"--results {results} already holds a run: choose another folder, or delete this one")


def _check_search(settings: Settings, users: int | None, *, headless: bool) -> None:
    """Raise InputError if the options do not allow a search."""
    if not settings.slos:
        raise InputError("a search for capacity needs at least one --slo, such as --slo ttft:p95:500")
    if headless and users is None:
        raise InputError(
            "a search for capacity needs -u, the maximum number of streams (with --request-rate: of requests in flight)"
        )
    others = {
        "--requests": settings.requests,
        "--rate-stages": settings.loop.stages,
        "--arrival-trace": settings.loop.trace,
        "--warmup-requests": settings.warmup_requests,
        "--warmup-time": settings.warmup_time,
        "--trim-start": settings.trim_start,
        "--trim-end": settings.trim_end,
    }
    for name, given in others.items():
        if given:
            raise InputError(f"remove {name}: a search chooses its load, and excludes the start of each step")


class Checks:
    """Checks the tests of an environment whose requests have these credentials."""

    def __init__(self, environment: Environment, credentials: Credentials) -> None:
        self._environment, self.credentials = environment, credentials
        self.searching = bool(getattr(environment.shape_class, "searches_capacity", False))
        """Whether tests are searches for capacity."""
        self._is_worker = isinstance(environment.runner, WorkerRunner)
        self.models: dict[str, str] = {}
        """Each host's only model, for options that name none."""
        self.dialects: dict[str, str] = {}
        """The realtime dialect that each host accepted in a trial session."""

    def check(
        self, options: Namespace, host: str | None, form_key: str = "", chosen: Sequence[str] = ()
    ) -> tuple[Settings, Targets]:
        """The settings and targets of a test. `form_key` is the API key of the web form, `chosen` its user classes
        (empty: Locust's). Raises InputError."""
        settings, secrets = self.settings(options, host, form_key)
        targets = self._targets(options, host, secrets, chosen)
        if self.searching and not self._is_worker and options.resume:
            from asr_load.load.search import resumed

            resumed(Path(options.resume), settings, targets.data_sha256)
        return settings, targets

    def check_options(self, options: Namespace, host: str | None) -> Settings:
        """The settings of the command line's test, checked as far as possible without opening its data. Raises
        InputError."""
        settings, secrets = self.settings(options, host)
        for name, own in self._user_classes(options, ()).items():
            class_options = for_class(options, name, own)
            with _naming(name, own):
                of_class = self._settings_of_class(class_options, host, secrets)
                check_format(of_class, read_manifest(of_class.data).options.rules.audio_format)
        if settings.results is not None:
            check_new(settings.results)
        if options.headless and options.num_users is None:
            raise InputError("--headless needs -u, the number of concurrent streams")
        return settings

    def settings(self, options: Namespace, host: str | None, form_key: str = "") -> tuple[Settings, Secrets]:
        """The settings and secrets of a test, checked as far as possible without its data. Raises InputError."""
        host = self.credentials.without_credentials(host)
        secrets = self.credentials.for_host(host, form_key)
        if self._is_worker:
            self.credentials.check_route(options, secrets)
        settings = read_settings(options, host, secrets, *self._found(options, host))
        if settings.loop.open and options.headless and options.num_users is None:
            raise InputError("an open loop needs -u, the maximum number of requests in flight")
        if not self._is_worker:
            check_writable(settings.results or RESULTS)
            if self.searching:
                _check_search(settings, options.num_users, headless=options.headless)
        return settings, secrets

    def _targets(self, options: Namespace, host: str | None, secrets: Secrets, chosen: Sequence[str]) -> Targets:
        """The target of each user class. Raises InputError."""
        # Late: see "Start" in docs/architecture.md.
        from asr_load.audio.shard import Shards, verify
        from asr_load.load.target import Target, Targets

        targets: dict[str, Target] = {}
        opened: dict[Path, Shards] = {}
        for name, own in self._user_classes(options, chosen).items():
            class_options = for_class(options, name, own)
            with _naming(name, own):
                settings = self._settings_of_class(class_options, host, secrets)
                if settings.data not in opened:
                    opened[settings.data] = shards = Shards(settings.data)
                    # In a thread, so that this process can respond meanwhile, such as a master to its workers.
                    in_thread(verify, shards.folder, shards.manifest)
                check_format(settings, opened[settings.data].audio_format)
                targets[name] = Target(settings, opened[settings.data])
                targets[name].order()
        return Targets(targets)

    def _settings_of_class(self, options: Namespace, host: str | None, secrets: Secrets) -> Settings:
        """The settings of a user class by its options. Raises InputError."""
        host = self.credentials.without_credentials(host)
        settings = read_settings(options, host, secrets, *self._found(options, host))
        settings.request.in_format()
        return settings

    def _found(self, options: Namespace, host: str | None) -> tuple[str, str]:
        """The server's model and realtime dialect, if known. A worker gets them from its master."""
        if self._is_worker:
            test = _fleet_test(options)
            return (test.model, test.dialect) if test else ("", "")
        return self.models.get(check_host(host), ""), self.dialects.get(check_host(host), "")

    def _user_classes(self, options: Namespace, chosen: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """The user classes that send speech, with their own options. Without any, as in a program that uses the
        library, a nameless class without options."""
        classes: dict[str, Any] = {user_class.__name__: user_class for user_class in self._environment.user_classes}
        if chosen or self._is_worker:
            classes |= self._environment.available_user_classes or {}
        if self._is_worker and (test := _fleet_test(options)):
            chosen = list(test.manifests)
        if missing := [name for name in chosen if name and name not in classes]:
            raise InputError(f"there is no user class {missing[0]} here: use the master's locustfile")
        speaking = {
            name: user_class.options for name, user_class in classes.items() if issubclass(user_class, OwnOptions)
        }
        return {name: own for name, own in speaking.items() if not chosen or name in chosen} or {"": {}}


def _fleet_test(options: Namespace) -> FleetTest | None:
    from asr_load.load.messages import fleet_test

    return fleet_test(options)


@contextmanager
def _naming(user_class: str, own: Mapping[str, Any]) -> Iterator[None]:
    """Name the user class in errors within this block, if it has its own options."""
    try:
        yield
    except InputError as error:
        if own:
            raise InputError(f"user class {user_class}: {error}") from None
        raise
