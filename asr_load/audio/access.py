"""Recognize refused access by an error's class and status, never by its message."""

from __future__ import annotations

from collections.abc import Iterator

REFUSED = (401, 403)

CURE = "set HF_TOKEN to a token with access; for a gated data set, accept its terms on its page first"


def is_refused(error: BaseException) -> bool:
    """Whether the Hugging Face hub or another server refused access, anywhere in the chain of an error's causes."""
    # Late: local folders do not need it.
    from huggingface_hub.errors import GatedRepoError

    return any(isinstance(each, GatedRepoError) or _status(each) in REFUSED for each in _causes(error))


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
