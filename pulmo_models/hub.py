"""The checkpoints of a published model, from a Hugging Face hub.

The hub is ``$HF_ENDPOINT`` or huggingface.co, and a token is taken from where ``huggingface_hub`` looks for one. The
two files are those of one commit: the revision is resolved with the first request, and everything after it names the
commit. What came of an interrupted transfer stays in the folder, and the next call asks for the rest only
(``hf_hub_download`` would begin anew after a crash). A file is complete when its size and its SHA-256, where the hub
states one, are those that the hub announced.

Errors: :class:`WeightsUnavailable`, one sentence each.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import httpx2  # the HTTP client of huggingface_hub; its errors pass through
from huggingface_hub import HfFileMetadata, get_hf_file_metadata, get_session, hf_hub_url, hf_raise_for_status
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers

from pulmo_models.errors import WeightsUnavailable
from pulmo_models.published import PublishedModel
from pulmo_models.weights import sha256_of

ByteCallback = Callable[[str, int, int], None]
"""Called with the name of the file, the bytes that are there and the bytes of the whole file."""

DEFAULT_ENDPOINT = "https://huggingface.co"

_TIMEOUT_SECONDS = 30.0
_CHUNK_BYTES = 1 << 20
_FRUITLESS_ATTEMPTS = 4  # in a row, without one byte
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Downloaded:
    """The two checkpoints of one commit."""

    stage1: Path
    stage2: Path
    commit: str
    endpoint: str


def download(
    model: PublishedModel,
    folder: Path,
    *,
    revision: str = "main",
    progress: ByteCallback = lambda file, done, total: None,
    wait: Callable[[float], None] = time.sleep,
) -> Downloaded:
    """Get both checkpoints of a model into ``folder``; what lies there already is not transferred again.

    Raises:
        WeightsUnavailable: no network, no such repository, revision or file, no permission, or a file that is not
            what the hub announced.
    """
    hub = _Hub(model.repository, progress, wait)
    first = hub.metadata(model.stage1.file, revision)
    commit = str(first.commit_hash)
    second = hub.metadata(model.stage2.file, commit)
    return Downloaded(
        stage1=hub.get(model.stage1.file, first, folder),
        stage2=hub.get(model.stage2.file, second, folder),
        commit=commit,
        endpoint=hub.endpoint,
    )


def resolve(model: PublishedModel, revision: str = "main") -> str:
    """The commit that a branch, a tag or an abbreviated commit of the model's repository stands for.

    Raises:
        WeightsUnavailable: as :func:`download`.
    """
    return str(_Hub(model.repository).metadata(model.stage1.file, revision).commit_hash)


class _Hub:
    """One repository of one hub."""

    def __init__(
        self,
        repository: str,
        progress: ByteCallback = lambda file, done, total: None,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self.endpoint = (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        self._repository = repository
        self._progress = progress
        self._wait = wait

    def metadata(self, file: str, revision: str) -> HfFileMetadata:
        """Commit, size and digest of a file at a revision."""
        try:
            with self._explained(file, revision):
                url = hf_hub_url(self._repository, file, revision=revision, endpoint=self.endpoint)
                found = get_hf_file_metadata(url, timeout=_TIMEOUT_SECONDS, endpoint=self.endpoint)
        except httpx2.TransportError as exc:
            raise WeightsUnavailable(f"no connection to {self.endpoint}: {_reason(exc)}") from exc
        if not found.commit_hash or not found.etag or found.size is None:
            raise WeightsUnavailable(
                f"{self.endpoint} does not answer as a Hugging Face hub does: no commit or no size"
            )
        return found

    def get(self, file: str, metadata: HfFileMetadata, folder: Path) -> Path:
        """The file of that metadata, complete and checked."""
        # The place is named by the content, so that a part of another version is never continued.
        place = folder / hashlib.sha256(f"{metadata.etag} {metadata.size}".encode()).hexdigest()[:16]
        path, part = place / file, place / f"{file}.part"
        if path.is_file():
            self._progress(file, int(metadata.size or 0), int(metadata.size or 0))
            return path
        try:
            place.mkdir(parents=True, exist_ok=True)
            with part.open("ab") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._transfer(file, metadata, stream)
            self._check(file, metadata, part)
            part.rename(path)
        except BlockingIOError as exc:
            raise WeightsUnavailable(f"{part} is being written by another download") from exc
        except OSError as exc:
            raise WeightsUnavailable(f"{part} cannot be written: {exc.strerror or exc}") from exc
        return path

    def _transfer(self, file: str, metadata: HfFileMetadata, stream: BinaryIO) -> None:
        """Append what is missing; a broken connection is taken up again where it broke."""
        total = int(metadata.size or 0)
        if stream.tell() > total:
            _empty(stream)
        fruitless = 0
        while (before := stream.tell()) < total:
            try:
                self._append(file, metadata, stream)
            except httpx2.TransportError as exc:
                fruitless = 0 if stream.tell() > before else fruitless + 1
                if fruitless == _FRUITLESS_ATTEMPTS:
                    raise WeightsUnavailable(
                        f"the connection to {self.endpoint} broke at {stream.tell()} of {total} bytes of {file} "
                        f"({_reason(exc)}); what came is kept for the next attempt"
                    ) from exc
                if fruitless:
                    self._wait(2.0 ** (fruitless - 1))

    def _append(self, file: str, metadata: HfFileMetadata, stream: BinaryIO) -> None:
        # By the address of the hub and not by that of its store, whose signature may have expired. The client follows
        # the redirect and shows a token to no other host.
        commit, total, begin = str(metadata.commit_hash), int(metadata.size or 0), stream.tell()
        url = hf_hub_url(self._repository, file, revision=commit, endpoint=self.endpoint)
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        if begin:
            headers["Range"] = f"bytes={begin}-"
        with (
            self._explained(file, commit),
            get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT_SECONDS) as response,
        ):
            hf_raise_for_status(response)
            if begin and response.status_code != httpx2.codes.PARTIAL_CONTENT:
                _empty(stream)  # the whole file comes, whatever was asked for
            for chunk in response.iter_bytes(_CHUNK_BYTES):
                stream.write(chunk)
                self._progress(file, stream.tell(), total)
                if stream.tell() > total:
                    return  # whatever it is, it is not the file; the check says so
        if stream.tell() < total:
            raise httpx2.RemoteProtocolError("the transfer ended early")

    def _check(self, file: str, metadata: HfFileMetadata, part: Path) -> None:
        digest = str(metadata.etag)
        wrong = ""
        if (size := part.stat().st_size) != metadata.size:
            wrong = f"{size} bytes came, not {metadata.size}"
        # The tag of a file in large file storage is its SHA-256; that of any other file is a hash of git's.
        elif _SHA256.fullmatch(digest) and (found := sha256_of(part)) != digest:
            wrong = f"its sha256 is {found}, the hub announced {digest}"
        if wrong:
            part.unlink()
            raise WeightsUnavailable(f"{file} of {self._repository} arrived damaged: {wrong}; it was thrown away")

    @contextmanager
    def _explained(self, file: str, revision: str) -> Iterator[None]:
        """The errors of the hub and of the way to it, as one sentence; that of a transfer that broke passes."""
        where = f"{self._repository} on {self.endpoint}"
        try:
            yield
        except OfflineModeIsEnabled as exc:
            raise WeightsUnavailable("nothing is fetched while HF_HUB_OFFLINE is set") from exc
        except GatedRepoError as exc:
            raise WeightsUnavailable(
                f"{where} is gated: accept its conditions on its page and set HF_TOKEN to your access token"
            ) from exc
        except RevisionNotFoundError as exc:
            raise WeightsUnavailable(f"{where} has no revision {revision!r}") from exc
        except EntryNotFoundError as exc:
            raise WeightsUnavailable(f"{where} has no file {file} at revision {revision!r}") from exc
        except RepositoryNotFoundError as exc:
            raise WeightsUnavailable(f"{where} does not exist, or needs an access token in HF_TOKEN") from exc
        except (HfHubHTTPError, httpx2.HTTPStatusError) as exc:
            raise WeightsUnavailable(f"{where} answers {exc.response.status_code} for {file}") from exc
        except (FileMetadataError, HFValidationError, httpx2.InvalidURL, httpx2.TooManyRedirects) as exc:
            raise WeightsUnavailable(f"{where} cannot be asked for {file}: {_reason(exc)}") from exc


def _empty(stream: BinaryIO) -> None:
    stream.seek(0)
    stream.truncate()


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
