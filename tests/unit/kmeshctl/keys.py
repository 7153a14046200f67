# SPDX-License-Identifier: Apache-2.0
"""A key, what must never show of it, and what a cluster holds."""

import base64

import yaml
from kmesh.cluster.manifests import SECRET_FILE
from kmesh.cluster.secret import parse_keys

MATERIAL = bytes(range(200, 236))
HEX, OTHER = MATERIAL.hex(), bytes(range(36)).hex()
TRACES = (HEX, HEX.upper(), HEX[:8], HEX[-8:], base64.b64encode(MATERIAL).decode()[:8])


def stored(folder):
    return parse_keys(yaml.safe_load((folder / SECRET_FILE).read_text()))
