"""Whether an error means that access is refused: by its class and status, never by its words."""

from __future__ import annotations

from collections.abc import Iterator

REFUSED = (401, 403)

CURE = "set HF_TOKEN to the token of an account that may read it; if it is gated, accept its terms on its page first"


def is_refused(error: BaseException) -> bool:
    """Whether the Hugging Face hub or another server refused access, anywhere in the chain of an error's causes."""
    # Late: who reads a folder has no need of it.
    from huggingface_hub.errors import GatedRepoError

    return any(isinstance(each, GatedRepoError) or _status(each) in REFUSED for each in _causes(error))


def _status(error: BaseException) -> int | None:
    """Of an answer over HTTP, as requests, httpx and huggingface_hub keep it, or aiohttp."""
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "status", None)
    return status if isinstance(status, int) else None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
