"""Kinds of values that the sections of the configuration are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints

from pulmo_node.network.access import parse_network

# PS3.5 6.2, value representation AE: at most 16 characters, no backslash, no control characters.
AeTitle = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=16, pattern=r"^[ -\[\]-~]+$")
]
Port = Annotated[int, Field(ge=0, le=65535)]
# Seconds and minutes mostly: beyond 10^9, and above all at "inf", the clock has no such date. It is 32 years.
Positive = Annotated[float, Field(gt=0, le=1e9)]
AtLeastOne = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
NetworkText = Annotated[str, AfterValidator(lambda text: str(parse_network(text)))]
Share = Annotated[float, Field(ge=0, le=1)]

STRICT = ConfigDict(extra="forbid", strict=False)
"""Of every section: a key that it does not know is an error."""
