"""What several of these tests need and takes a moment to make."""

import subprocess

import pytest


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """A certificate and its key, in PEM."""
    folder = tmp_path_factory.mktemp("pair")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=me", "-addext", "subjectAltName=DNS:api.lab", "-out", folder / "me.crt", "-keyout", folder / "me.key"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder / "me.crt", folder / "me.key"
