"""Certificates for tests of TLS, made by openssl(1)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for this host name, and its key: two PEM files."""
    openssl = shutil.which("openssl")
    assert openssl is not None, "these tests make a certificate with openssl(1)"
    pem, key = folder / "cert.pem", folder / "key.pem"
    request = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    subject = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    subprocess.run(
        [openssl, *request, *subject, "-out", str(pem), "-keyout", str(key)], check=True, capture_output=True
    )
    return pem, key
