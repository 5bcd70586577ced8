"""Download weights over HTTPS, resumable and verified."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..text import tr
from .cards import WEIGHTS_VARIABLE, ModelCard

#: Called with (bytes done, bytes in total); may raise Cancelled.
ByteProgress = Callable[[int, int], None]

_CHUNK = 1 << 20

_TIMEOUT_SECONDS = 30

#: A connection that breaks is taken up again this often, as long as each attempt brought something.
_ATTEMPTS = 5


def download(
    card: ModelCard, target: Path, progress: ByteProgress | None = None, *, check: Callable[[Path, ModelCard], object]
) -> None:
    """Download the weights of `card` as the file `target`, which appears only once it is complete and checked.

    An interrupted download stays beside it as `<target>.part` and is continued by the next call if the server still
    has the same file (HTTP Range with If-Range). The SHA-256 is written to `<target>.json`.

    check(file, card) raises InputError for a file that is not the card's. Raises InputError without a network, for a
    full or read-only disk, and for a file that is not what the card says.
    """
    part = target.with_name(target.name + ".part")
    _require_https(card.url)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(_ATTEMPTS):
            before = _size(part)
            try:
                _download_rest(card, target, part, progress)
                break
            except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
                broken = not isinstance(error, urllib.error.HTTPError) and _size(part) > before
                if not broken or attempt == _ATTEMPTS - 1:
                    raise _no_download(card, target, getattr(error, "reason", None) or error) from None
        if card.size and abs(_size(part) - card.size) > 0.02 * card.size:
            size = _size(part)
            _forget(part)
            raise InputError(
                tr(
                    "{url} delivered {size} bytes where about {expected} were expected; download it in a browser and "
                    "save it as {target}.",
                    url=card.url,
                    size=size,
                    expected=card.size,
                    target=target,
                )
            )
        sha256 = sha256_of_weights(part)
        try:
            if card.sha256 and sha256 != card.sha256:
                raise InputError(
                    tr(
                        "{url} delivered a file with another SHA-256 ({sha256}); try again later.",
                        url=card.url,
                        sha256=sha256,
                    )
                )
            check(part, card)
        except InputError:
            _forget(part)
            raise
        record = {"url": card.url, "size": _size(part), "sha256": sha256}
        target.with_name(target.name + ".json").write_text(json.dumps(record, indent=1))
        os.replace(part, target)
        _forget(part)
    except OSError as error:
        raise InputError(
            tr(
                "The weights of {model} cannot be written to {folder} ({reason}); free about {megabytes:.0f} MB there "
                "or choose another weights folder.",
                model=card.title,
                folder=target.parent,
                reason=error.strerror or str(error),
                megabytes=card.size / 1e6,
            )
        ) from None


def _download_rest(card: ModelCard, target: Path, part: Path, progress: ByteProgress | None) -> None:
    """Download the missing rest of `part` by one connection, or start again if the server cannot resume."""
    request = urllib.request.Request(card.url, headers={"User-Agent": "icon-registration"})
    validator = read_json(_validator_file(part)).get(card.url)
    if _size(part) and validator:
        request.add_header("Range", f"bytes={_size(part)}-")
        request.add_header("If-Range", validator)
    try:
        response = urllib.request.build_opener(_SecureRedirects).open(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # asked for what lies beyond the end: `part` is complete, or of another file
            raise
        if error.headers.get("Content-Range") == f"bytes */{_size(part)}":
            return
        _forget(part)
        return _download_rest(card, target, part, progress)
    with response:
        start = _size(part)
        continues = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if response.status == 206 and not continues:
            _forget(part)
            raise http.client.HTTPException(f"the server sent {response.headers.get('Content-Range')}")
        done = start if continues else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else card.size
        # A weak ETag does not promise equal bytes.
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        if tag.startswith("W/"):
            tag = ""
        with open(part, "ab" if continues else "wb") as file:
            _validator_file(part).write_text(json.dumps({card.url: tag}))
            while chunk := _read(response):
                file.write(chunk)
                done += len(chunk)
                if progress:
                    progress(done, total)
        if length and done < total:
            raise ConnectionError(f"the connection broke after {done} of {total} bytes")


def _read(response) -> bytes:
    """Return the next piece, what came of it if the connection breaks, b"" at the end."""
    try:
        return response.read(_CHUNK)
    except http.client.IncompleteRead as error:
        return error.partial


class _SecureRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects (a release lies on another host) but never from HTTPS to plain HTTP."""

    def redirect_request(self, request, file, code, message, headers, url):
        _require_https(url)
        return super().redirect_request(request, file, code, message, headers, url)


def _require_https(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")):
        raise InputError(tr("Weights are downloaded over HTTPS only, not from {url}.", url=url))


def _no_download(card: ModelCard, target: Path, reason) -> InputError:
    return InputError(
        tr(
            "The weights of {model} could not be downloaded ({reason}); try again, or fetch {url} in a browser, rename "
            "it to {name} and put it into {folder} or into the folder that {variable} names.",
            model=card.title,
            reason=str(reason),
            url=card.url,
            name=target.name,
            folder=target.parent,
            variable=WEIGHTS_VARIABLE,
        )
    )


def _validator_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _forget(part: Path) -> None:
    for path in (part, _validator_file(part)):
        path.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def sha256_of_weights(path: Path) -> str:
    """Return the SHA-256 of a weights file. Raises InputError where it cannot be read."""
    from ..io.writing import sha256_of

    try:
        return sha256_of([path])
    except OSError as error:
        raise InputError(
            tr("The weights file {path} cannot be read ({reason}).", path=path, reason=error.strerror or str(error))
        ) from None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
