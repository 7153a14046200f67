# SPDX-License-Identifier: Apache-2.0
"""The bundle of a node that has SAs: what ip prints of them is in it, and no key, not even of SAs that are not ours."""

import base64
import os
import subprocess
import tarfile

from tests.lab.apiserver import ROOT
from tests.lab.network import run

NODE = "bundled"
OURS, STRANGE = bytes(range(101, 137)), bytes(range(7, 27))
"""Of an SA as ours are, and of one with authentication alone, shorter than what is hidden for its length."""


def test_no_key_of_any_sa_is_in_it(tmp_path):
    run(f"ip netns add {NODE}; ip -n {NODE} link set lo up")
    ends = "src 10.0.0.1 dst 10.0.0.2 proto esp"
    run(f"ip -n {NODE} xfrm state add {ends} spi 0x1 mode tunnel aead 'rfc4106(gcm(aes))' 0x{OURS.hex()} 128")
    run(
        f"ip -n {NODE} xfrm state add {ends} spi 0x2 mode tunnel auth 'hmac(sha1)' 0x{STRANGE.hex()} enc 'ecb(cipher_null)' ''"
    )
    file = tmp_path / "b.tar.gz"
    try:
        command = [
            "ip",
            "netns",
            "exec",
            NODE,
            str(ROOT / ".venv/bin/kmeshctl"),
            "bundle",
            "--node",
            "--file",
            str(file),
        ]
        subprocess.run(command, check=True, env={**os.environ, "HOME": str(tmp_path), "KUBECONFIG": "/nowhere"})
    finally:
        run(f"ip netns del {NODE}")
    with tarfile.open(file) as archive:
        found = {one.name: archive.extractfile(one).read() for one in archive.getmembers()}
    (state,) = [content for name, content in found.items() if name.endswith("/xfrm/state.txt")]
    assert b"spi 0x00000001" in state
    assert b"spi 0x00000002" in state
    for name, content in found.items():
        for key in (OURS, STRANGE):
            for form in (key, key.hex().encode(), key.hex().upper().encode(), base64.b64encode(key)):
                assert form not in content, name
