"""A checkpoint from the web: downloaded once, whole or not at all, and only when somebody asks for a URL."""

from __future__ import annotations

import hashlib
import logging
import re
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from edm_fast.files import atomic_write, remove_leftovers

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20
# Given a URL and a timeout in seconds, an open response: with `read`, `headers` and, if it was redirected, `url`.
Opener = Callable[[str, float], Any]


def default_cache() -> Path:
    """The folder that downloads are kept in, ~/.cache/edm_fast."""
    return Path.home() / ".cache" / "edm_fast"


def is_url(text: str) -> bool:
    """Whether a text is meant as a URL and not as a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def download(
    url: str,
    cache: Path | None = None,
    timeout: float = 30.0,
    progress: bool = True,
    opener: Opener | None = None,
) -> Path:
    """The file that `url` names, on this machine: from the cache if it is there, else downloaded into it.

    Args:
        url: begins with https://, and so does every address that it leads to.
        cache: the folder that keeps downloads; by default `default_cache()`.
        timeout: seconds without an answer, or without a byte, after which the download fails.
        progress: show a bar where there is a terminal.
        opener: opens the URL in place of urllib.

    The file takes its name in the cache when it is complete; nothing is left of a download that fails.

    Raises ValueError for another kind of URL; OSError, naming the URL, when it cannot be had whole, and naming the
    folder when it cannot be written.
    """
    _check_scheme(url)
    folder = default_cache() if cache is None else cache
    target = folder / _file_name(url)
    if target.exists():
        logger.info("%s is in the cache: %s", url, target)
        return target
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers([target])
    try:
        response = (opener or _open)(url, timeout)
    except (OSError, HTTPException) as error:
        raise OSError(f"{url}: cannot be downloaded: {getattr(error, 'reason', None) or error}") from error
    with response:
        _check_scheme(str(getattr(response, "url", url) or url))
        expected = response.headers.get("Content-Length")
        total = int(expected) if expected is not None and expected.isdecimal() else None
        with atomic_write(target) as file:
            received = _copy(url, response, file, total if progress else None, disable=None if progress else True)
            if total is not None and received != total:
                raise OSError(f"{url}: the download ended after {received} of {total} bytes")
            if not received:
                raise OSError(f"{url}: the download is empty")
    return target


def _copy(url: str, response: Any, file: IO[bytes], total: int | None, disable: bool | None) -> int:
    """Copy what the server sends; returns the number of bytes."""
    received = 0
    with tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, disable=disable) as bar:
        while True:
            try:
                part = response.read(_CHUNK)
            except (HTTPException, OSError) as error:
                raise OSError(f"{url}: the download broke off after {received} bytes: {error}") from error
            if not part:
                return received
            file.write(part)
            received += len(part)
            bar.update(len(part))


def _check_scheme(url: str) -> None:
    if urllib.parse.urlsplit(url).scheme != "https":
        raise ValueError(f"url must begin with https://, but it is {url[:200]!r}")


def _file_name(url: str) -> str:
    """Readable, and another one for every URL."""
    last = urllib.parse.unquote(urllib.parse.urlsplit(url).path).rpartition("/")[2]
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", last).lstrip(".")[-80:]
    return f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{readable or 'network'}"


class _SecureRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https alone."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, timeout: float) -> Any:
    return urllib.request.build_opener(_SecureRedirects).open(url, timeout=timeout)
