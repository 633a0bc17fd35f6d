"""Turn the hub's errors into one line with the next step."""

import errno
from http import HTTPStatus

import httpx2
from huggingface_hub import get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from exporter.config import HubModel
from exporter.errors import ExportError
from runtime_py.terminal.printable import shown

LOG_IN = "log in with `hf auth login` (or set HF_TOKEN)"
KEPT = "what came is kept, the same command goes on from there"

# What a call of huggingface_hub may raise; the last three come from a server that is no hub.
FAILURES = (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, KeyError, TypeError)


def unreachable(error: Exception) -> bool:
    """Whether the hub did not answer about the model, so that the cache may serve instead."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    return isinstance(error, OfflineModeIsEnabled | httpx2.TransportError)


def explained(error: Exception, model: HubModel, endpoint: str) -> ExportError:
    """The line for an error that occurred while fetching `model`."""
    if isinstance(error, HfHubHTTPError):
        return ExportError(f"{model}: {_refusal(error, model, endpoint)}")
    if unreachable(error):
        return ExportError(f"{model}: {no_answer(error, endpoint)}")
    if isinstance(error, OSError):
        return ExportError(f"{model}: {_disk(error)}")
    return ExportError(
        f"{model}: {endpoint} does not answer as a hub does ({shown(error)}); "
        "correct or unset HF_ENDPOINT"
    )


def no_answer(error: Exception, endpoint: str) -> str:
    """Why the hub could not be reached, and what to do."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it to download"
    if isinstance(error, HfHubHTTPError):
        return f"{endpoint} is out of order ({error.response.status_code}); try again later, {KEPT}"
    if isinstance(error, httpx2.LocalProtocolError):  # its message quotes the token
        return "HF_TOKEN, or that of `hf auth login`, cannot be sent; correct it"
    said = shown(error) or type(error).__name__
    return f"{endpoint} cannot be reached ({said}); check the network and try again, {KEPT}"


def _refusal(error: HfHubHTTPError, model: HubModel, endpoint: str) -> str:
    page = f"{endpoint}/{model.repo}"
    if isinstance(error, GatedRepoError):
        if get_token() is None:
            return f"its owner asks for consent: accept the terms at {page}, then {LOG_IN}"
        return (
            f"your account has no access to it: accept the terms at {page} with the account that "
            "`hf auth whoami` names, or log in as another with `hf auth login`"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"no such revision; choose one of {page}/commits/main, or leave it away"
    if isinstance(error, RemoteEntryNotFoundError):
        return "a file of its listing is gone; run the command again"
    if isinstance(error, RepositoryNotFoundError):
        # The hub does not tell these cases apart.
        unknown = "private, or your token out of date" if get_token() else "private"
        return (
            f"neither a folder here nor a model at {endpoint}; check the spelling, or if it is "
            f"{unknown}, {LOG_IN}"
        )
    return _status(error.response.status_code, endpoint)


def _status(status: int, endpoint: str) -> str:
    if status == HTTPStatus.UNAUTHORIZED:
        return (
            "the hub does not know your token (HF_TOKEN, or that of `hf auth login`); make one at "
            f"{endpoint}/settings/tokens and {LOG_IN}, or unset it"
        )
    if status == HTTPStatus.FORBIDDEN:
        return (
            "your token may not read it; allow it to read gated repositories at "
            f"{endpoint}/settings/tokens, or {LOG_IN} with another"
        )
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return f"too many requests; wait some minutes, or {LOG_IN} for a higher limit"
    return f"{endpoint} answers {status}; try again later, {KEPT}"


def _disk(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"the disk of the cache is full; free some room or set HF_HOME to another, {KEPT}"
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{shown(error.strerror or error)}; correct it, or set HF_HOME to another folder"
