"""The table of a pipeline in a configuration as the dataclass of its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

Settings = TypeVar("Settings")


def checked_settings(kind: type[Settings], table: Mapping[str, Any], label: str) -> Settings:
    """The settings of the pipeline ``label``.

    Raises:
        ValueError: a value is wrong or a key unknown; every fault names its key.
    """
    try:
        return TypeAdapter(kind).validate_python(dict(table))
    except ValidationError as exc:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in exc.errors()]
        raise ValueError(f"settings of {label}: {'; '.join(faults)}") from exc
