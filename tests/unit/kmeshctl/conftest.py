# SPDX-License-Identifier: Apache-2.0
import io

import pytest
from kmesh.kmeshctl.cli import main

from tests.unit.kmeshctl.keys import TRACES


@pytest.fixture
def kmeshctl(tmp_path):
    """Run a command on a cluster; give status, output and errors. Whatever it says, no key may be in it."""

    def run(*argv, stdin="", cluster=True, show=False):
        out, err = io.StringIO(), io.StringIO()
        where = ["--manifests", str(tmp_path)] if cluster else []
        status = main([*where, *argv], io.StringIO(stdin), out, err)
        assert "Traceback" not in err.getvalue()
        if status:
            assert err.getvalue().count("\n") == 1
            assert err.getvalue().startswith("kmeshctl: ")
        else:
            assert err.getvalue() == ""
        if not show:
            assert not any(trace in out.getvalue() + err.getvalue() for trace in TRACES)
        return status, out.getvalue(), err.getvalue()

    return run
