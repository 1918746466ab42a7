"""Downloading one file: whole and verified, or one clear message."""

import hashlib
import http.client
import logging
import queue
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cifar_jax import files
from cifar_jax.errors import UserError

# To wait for a server's answer, the look-up of its name included, in each try.
_ANSWER_SECONDS = (6.0, 15.0, 40.0)
_STALL_SECONDS = 30.0  # to wait for the next bytes of a download
_PAUSE_SECONDS = 3.0  # before another try, if the last one ended at once
_BUSY = (429, 502, 503, 504)  # what a server or one before it answers for the time being
_log = logging.getLogger(__name__)


class _CutOffError(UserError):
    """Only a part of a file has come."""


def fetch(url: str, sha256: str, size: int, path: Path) -> None:
    """Makes sure that `path` holds a published file; downloads the file if it is missing.

    TFDS's own downloader is not used: it waits for a silent server without limit, retries for
    minutes, and leaves incomplete files behind.

    Args:
      url: where the file is published.
      sha256: the SHA-256 of its bytes, in hexadecimal.
      size: their number.
      path: where the file belongs; it appears there only once it is complete and verified.

    Raises:
      UserError: `path` holds another file, or the file cannot be downloaded.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a plain file: replace or delete it")
    files.clear_unfinished(path.parent)
    try:
        if not path.exists():
            _download(url, sha256, size, path)
            return
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
                raise UserError(
                    f"{path} has another SHA-256 than the file published at {url}: replace or "
                    "delete it"
                )
    except (OSError, http.client.HTTPException) as error:  # of the network or of the disk
        reason = " ".join(str(error).split())
        raise UserError(
            f"cannot download {url} ({reason}): prepare the set elsewhere and set "
            f"TFDS_DATA_DIR, or put the archive at {path}, or train configs/digits.py"
        ) from error


def _download(url: str, sha256: str, size: int, path: Path) -> None:
    for left in range(len(_ANSWER_SECONDS) - 1, -1, -1):
        with open_url(url) as response:
            try:
                return _receive(response, url, sha256, size, path)
            except (_CutOffError, TimeoutError, ConnectionError, http.client.IncompleteRead) as end:
                if not left:
                    raise
                _log.info("%s: %s; trying again", url, end)
        time.sleep(_PAUSE_SECONDS)


def _receive(response: Any, url: str, sha256: str, size: int, path: Path) -> None:
    """Writes the body of an answer to a file, whole and verified or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _log.info("downloading %s (%.0f MB) to %s", url, size / 1e6, path)
    expected = int(response.headers.get("Content-Length") or size)
    bar = tqdm.wrapattr(response, "read", expected, desc=path.name, leave=False, disable=None)
    with files.replacing(path) as stream, bar as body:
        shutil.copyfileobj(body, stream, 2**20)
        if (received := stream.tell()) < expected:
            words = f"was cut off after {received} of {expected} bytes: start again"
            raise _CutOffError(f"the download of {url} {words}")
        stream.seek(0)
        if (digest := hashlib.file_digest(stream, "sha256").hexdigest()) != sha256:
            raise UserError(
                f"{url} gave another file than the published one (SHA-256 {digest}): start "
                f"again, or put the published one at {path}"
            )


def open_url(url: str) -> Any:
    """Opens a URL; tries again, and waits longer, if what failed may pass.

    Raises:
      OSError, HTTPException: it cannot be opened (`urllib.error.HTTPError` if the server says so).
    """
    *others, last = _ANSWER_SECONDS
    for seconds in others:
        try:
            return _open_within(url, seconds)
        except (OSError, http.client.HTTPException) as error:
            if not _may_pass(error):
                raise
            _log.info("%s: %s; trying again", url, error)
            time.sleep(0 if isinstance(error, TimeoutError) else _PAUSE_SECONDS)
    return _open_within(url, last)


def _may_pass(error: Exception) -> bool:
    """Whether another try may succeed: the server is busy or silent, or the name server is."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in _BUSY
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    return isinstance(error, TimeoutError | ConnectionResetError)


def _open_within(url: str, seconds: float) -> Any:
    answers: queue.Queue[Any] = queue.Queue()

    def ask() -> None:
        try:
            answers.put(urllib.request.urlopen(url, timeout=max(seconds, _STALL_SECONDS)))
        except Exception as error:
            answers.put(error)

    # A name look-up has no time limit of its own; a daemon thread may be left waiting for it.
    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} seconds") from None
    if isinstance(answer, urllib.error.HTTPError):
        answer.close()
    elif isinstance(answer, urllib.error.URLError) and isinstance(answer.reason, OSError):
        raise answer.reason
    if isinstance(answer, Exception):
        raise answer
    return answer
