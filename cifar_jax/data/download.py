"""Fetching one archive over the network: whole, verified, or one clear message."""

import dataclasses
import hashlib
import http.client
import logging
import os
import queue
import sys
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO, Any

from cifar_jax.errors import UserError

_ANSWER_SECONDS = 6.0  # to wait for a server's answer, the look-up of its name included
_STALL_SECONDS = 30.0  # to wait for the next bytes of a download
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Archive:
    """An archive on the web.

    Attributes:
      url: where it is.
      sha256: the SHA-256 of its bytes, in hexadecimal.
      size: their number.
    """

    url: str
    sha256: str
    size: int

    @property
    def filename(self) -> str:
        """The last part of the URL."""
        return Path(urllib.parse.urlparse(self.url).path).name


def fetch(archive: Archive, path: Path) -> None:
    """Makes sure that `path` holds the archive, downloading it where there is no such file.

    The file appears at `path` only when it is whole and right; nothing else is left behind.

    Raises:
      UserError: there is another file at `path`, or the archive cannot be downloaded.
    """
    try:
        if path.exists():
            _verify(archive, path)
            return
        with open_url(archive.url) as response:
            path.parent.mkdir(parents=True, exist_ok=True)
            _download(archive, response, path)
    except (OSError, http.client.HTTPException) as error:  # of the network or of the disk
        reason = " ".join(str(error).split())
        raise UserError(
            f"cannot download {archive.url} ({reason}): prepare the set elsewhere and set "
            f"TFDS_DATA_DIR, or put the archive at {path}, or take --config=configs/digits.py"
        ) from error


def open_url(url: str) -> Any:
    """Opens a URL, or gives up within seconds.

    Raises:
      OSError, HTTPException: it cannot be opened (`urllib.error.HTTPError` if the server says so).
    """
    answers: queue.Queue[Any] = queue.Queue()

    def ask() -> None:
        try:
            answers.put(urllib.request.urlopen(url, timeout=_STALL_SECONDS))
        except Exception as error:
            answers.put(error)

    # A name look-up knows no time limit of its own; a daemon thread may be left waiting for it.
    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=_ANSWER_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer within {_ANSWER_SECONDS:g} seconds") from None
    if isinstance(answer, urllib.error.HTTPError):
        answer.close()
    elif isinstance(answer, urllib.error.URLError) and isinstance(answer.reason, OSError):
        raise answer.reason
    if isinstance(answer, Exception):
        raise answer
    return answer


def _verify(archive: Archive, path: Path) -> None:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != archive.sha256:
        raise UserError(
            f"{path} is not the file published at {archive.url}, by its SHA-256: replace or "
            "delete it"
        )


def _download(archive: Archive, response: Any, path: Path) -> None:
    _log.info("downloading %s (%.0f MB) to %s", archive.url, archive.size / 1e6, path)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            digest, received = _receive(archive, response, stream)
        expected = int(response.headers.get("Content-Length") or archive.size)
        if received < expected:
            raise UserError(
                f"the download of {archive.url} was cut off after {received} of {expected} "
                "bytes: start again"
            )
        if digest != archive.sha256:
            raise UserError(
                f"{archive.url} gave another file than the published one (SHA-256 {digest}): "
                f"start again, or put the published one at {path}"
            )
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _receive(archive: Archive, response: Any, stream: IO[bytes]) -> tuple[str, int]:
    digest, received = hashlib.sha256(), 0
    while chunk := response.read(1 << 20):
        stream.write(chunk)
        digest.update(chunk)
        received += len(chunk)
        if sys.stderr.isatty():
            print(f"\r{received / archive.size:4.0%} ", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r     \r", end="", file=sys.stderr, flush=True)
    return digest.hexdigest(), received
