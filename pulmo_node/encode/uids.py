"""UIDs of what the node makes, derived from what it was made of (PS3.5 section 9, PS3.3 C.12.1.1.1).

The same series, revision, program, weights and settings always give the same UIDs, so a redelivery or a repeated
encoding is idempotent; a change of any of them gives new ones, so that bytes are never rewritten under one UID.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.uid import generate_uid


def _derived(parts: Sequence[str]) -> str:
    # One source with separators: generate_uid joins its sources, and ("1", "23") must differ from ("12", "3").
    return str(generate_uid(entropy_srcs=["\x1f".join(parts)]))


def result_uid(
    *,
    series_instance_uid: str,
    revision: int,
    pipeline: str,
    code_version: str,
    weights_sha256: str,
    settings_sha256: str,
    kind: str,
) -> str:
    """The UID of one thing that a job makes; `kind` says which (``"sr"``, ``"seg-series"`` and so on)."""
    parts = (series_instance_uid, str(revision), pipeline, code_version, weights_sha256, settings_sha256, kind)
    return _derived(("result", *parts))


def device_uid(*, pipeline: str, name: str, version: str, weights_sha256: str) -> str:
    """Device UID (0018,1002) of a pipeline as an observer; a new model is a new device (IHE AI Results)."""
    return _derived(("device", pipeline, name, version, weights_sha256))
