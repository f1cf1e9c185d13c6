"""Certificates for the tests of TLS, made by openssl."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A certificate and its key, PEM files."""

    certificate: Path
    private_key: Path


@dataclass(frozen=True, kw_only=True)
class Authority:
    """An issuer of certificates, in a folder of its own."""

    folder: Path
    own: Identity

    def issue(self, name: str, *, names: str = "DNS:localhost,IP:127.0.0.1") -> Identity:
        """A certificate for those subject alternative names."""
        key, request, certificate = (self.folder / f"{name}.{kind}" for kind in ("key", "csr", "pem"))
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={names}\n")
        _openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}",
            "-keyout", str(key), "-out", str(request),
        )  # fmt: skip
        _openssl(
            "x509", "-req", "-in", str(request), "-CA", str(self.own.certificate), "-CAkey", str(self.own.private_key),
            "-days", "2", "-extfile", str(extensions), "-out", str(certificate),
        )  # fmt: skip
        return Identity(certificate=certificate, private_key=key)


def authority(folder: Path) -> Authority:
    """A new issuer. Skips the test where there is no openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    own = Identity(certificate=folder / "ca.pem", private_key=folder / "ca.key")
    _openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-subj", "/CN=Test issuer", "-keyout", str(own.private_key), "-out", str(own.certificate),
    )  # fmt: skip
    return Authority(folder=folder, own=own)


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=300)
