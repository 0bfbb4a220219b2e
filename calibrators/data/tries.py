"""Requests to a store that are tried again, and what is told of those that fail."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from trtq.errors import DataError, TrtqError, quote
from trtq.models.address import hide_secrets

T = TypeVar("T")
_TRIES = 4
_FIRST_WAIT_S = 0.5
_PASSING = (408, 425, 429)
"""The statuses below 500 after which HTTP says that another try may help."""


class NoPartsError(Exception):
    """The server gives files as a whole alone."""


def persist(call: Callable[[], T], name: str) -> T:
    """Returns what a call of a store returns, tried again after what may pass.

    Raises:
        DataError: It fails for good, or too often; it says how, without credentials.
        NoPartsError: As it is.
    """
    for attempt in range(_TRIES):
        try:
            return call()
        except (NoPartsError, TrtqError):
            raise
        except Exception as error:
            told = _describe(error, name)
            if told is not None:
                raise told from error
            if attempt == _TRIES - 1:
                words = hide_secrets(quote(_unwrap(error)))
                raise DataError(
                    f"cannot read {name}, {_TRIES} times: {words}; try again when the store answers"
                ) from error
        time.sleep(_FIRST_WAIT_S * 2**attempt)
    raise AssertionError("a try returns or raises")


def _describe(error: Exception, name: str) -> DataError | None:
    """Returns what to tell of a failure that lasts; None of one that may pass."""
    error = _unwrap(error)
    status, words = _find_status(error), hide_secrets(quote(error))
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return DataError(f"there is no {name}; check the address")
    if isinstance(error, PermissionError) or status in (401, 403) or "Credential" in type(error).__name__:
        return DataError(
            f"{name} may not be read: {words}; give credentials where the package of the store takes them"
        )
    if type(error).__name__ == "FileExpired" or status == 412:
        return describe_change(name)
    if status is not None:
        lasts = status < 500 and status not in _PASSING
    else:
        lasts = isinstance(error, ValueError | TypeError | LookupError | AttributeError | NotImplementedError)
    return DataError(f"cannot read {name}: {words}; check the address") if lasts else None


def _unwrap(error: Exception) -> Exception:
    """Returns the failure of HTTP of which fsspec makes a file that is not there."""
    cause = error.__cause__
    is_hidden = isinstance(error, FileNotFoundError) and isinstance(cause, Exception)
    is_web = type(cause).__module__.startswith("aiohttp") or isinstance(cause, TimeoutError)
    return cause if is_hidden and is_web and isinstance(cause, Exception) else error


def _find_status(error: Exception) -> int | None:
    """Returns the status of HTTP that libraries note in their errors, each in its way."""
    response = getattr(error, "response", None)
    found = getattr(error, "status", None) or getattr(error, "code", None)
    found = found or getattr(response, "status_code", None)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def describe_change(name: str) -> DataError:
    """Returns what to tell of a file that has become another one."""
    return DataError(
        f"{name} has changed since it was found; run this again when nothing writes to it, or give a copy"
    )
