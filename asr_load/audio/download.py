"""Download audio, and recognize that a server refused access: by an error's class and status, never by its message."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import requests

from asr_load.errors import InputError

HUB_SCHEME = "hf"
"""URL scheme of files on the Hugging Face hub."""

DOWNLOAD_TIMEOUT_S = 60.0
"""Timeout of a download, in seconds without data."""

NOTHING_THERE = (404, 410)

REFUSED = (401, 403)

CURE = "set HF_TOKEN to a token with access; for a gated data set, accept its terms on its page first"


class Url(str):
    """A URL from which audio is downloaded when its row is converted."""


def shown_url(url: str) -> str:
    """A URL without its query and user, which may be secret."""
    place = urlsplit(url)
    return f"{place.scheme}://{place.netloc.rpartition('@')[2]}{place.path}"


def fetch(url: Url) -> bytes | None:
    """Download a URL; None if nothing is there. Raises InputError if the download fails."""
    try:
        if urlsplit(url).scheme in ("http", "https"):
            response = requests.get(url, timeout=DOWNLOAD_TIMEOUT_S)
            if response.status_code in NOTHING_THERE:
                return None
            response.raise_for_status()
            return response.content
        # Late: `datasets` takes a second to import. It knows hf://, s3://, archives, and the user's token.
        from datasets.utils.file_utils import xopen

        with xopen(url, "rb") as remote:
            data: bytes = remote.read()
            return data
    except Exception as error:  # requests, fsspec, httpx and OpenSSL each raise different ones
        if is_refused(error):
            cure = f": {CURE}" if urlsplit(url).scheme == HUB_SCHEME else ""
            raise InputError(f"{shown_url(url)} cannot be downloaded: access refused{cure}") from None
        if isinstance(error, FileNotFoundError):
            return None
        why = type(error).__name__  # its message repeats the URL
        raise InputError(f"{shown_url(url)} cannot be downloaded ({why}); rerun the command to continue") from None


def is_refused(error: BaseException) -> bool:
    """Whether the Hugging Face hub or another server refused access, anywhere in the chain of an error's causes."""
    # Late: local folders do not need it.
    from huggingface_hub.errors import GatedRepoError

    return any(isinstance(cause, GatedRepoError) or _status(cause) in REFUSED for cause in _causes(error))


def _status(error: BaseException) -> int | None:
    """The HTTP status in an error of requests, httpx, huggingface_hub or aiohttp."""
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "status", None)
    return status if isinstance(status, int) else None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
