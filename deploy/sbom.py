# SPDX-License-Identifier: Apache-2.0
"""Writes what an image holds as a CycloneDX document: Debian's packages, and Python's of the environment it runs in.

    /kmesh/.venv/bin/python sbom.py DPKG_STATUS >sbom.cdx.json

Of the standard library alone, for it runs once, in the image. The same packages give the same bytes.
"""

import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import quote


def debian(status: str) -> Iterator[dict[str, str]]:
    """Give a component for each installed package of dpkg's status file."""
    for stanza in status.split("\n\n"):
        fields = dict(re.findall(r"^([A-Z][\w-]*): (.*)$", stanza, re.MULTILINE))
        if fields.get("Status") == "install ok installed":
            name, version = fields["Package"], fields["Version"]
            purl = f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={fields['Architecture']}"
            yield {"type": "library", "name": name, "version": version, "purl": purl}


def python(folders: list[str]) -> Iterator[dict[str, str]]:
    """Give a component for each distribution in these folders."""
    for one in distributions(path=folders):
        name = re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower()
        yield {"type": "library", "name": name, "version": one.version, "purl": f"pkg:pypi/{name}@{quote(one.version)}"}


def document(components: list[dict[str, str]], version: str) -> str:
    """Give the document's text."""
    image = {"type": "container", "name": "kmesh-ipsec", "version": version}
    whole = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": image},
        "components": sorted(components, key=lambda one: one["purl"]),
    }
    return json.dumps(whole, indent=1) + "\n"


if __name__ == "__main__":
    pip = list(python([one for one in sys.path if one.startswith(sys.prefix)]))
    (ours,) = [one["version"] for one in pip if one["name"] == "kmesh-ipsec"]
    sys.stdout.write(document([*debian(Path(sys.argv[1]).read_text()), *pip], ours))
