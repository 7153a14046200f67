# SPDX-License-Identifier: Apache-2.0
"""scripts/mutants knows the modules that there are, and tests that are there."""

import pytest

from tests.mutants.modules import GROUPS, ROOT, UnknownModuleError, chosen


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.package)
def test_modules_and_tests_of_each_group_are_there(group):
    folder = ROOT / ("" if group.package.startswith("kmesh_bpf") else "python") / group.package.replace(".", "/")
    assert [module for module in group.modules if not (folder / f"{module}.py").exists()] == []
    assert [path for path in (*group.tests, *group.slow) if not (ROOT / "tests/unit" / path).exists()] == []


@pytest.mark.parametrize(
    "name", ["sas", "core.sas", "kmesh_bpf.core.sas", "kmesh_bpf/core/sas.py", "core/sas"], ids=str
)
def test_a_module_goes_by_the_end_of_its_name_or_path(name):
    (group,) = chosen([name])
    assert group.names() == ("kmesh_bpf.core.sas",)
    assert group.tests == GROUPS[0].tests


def test_without_a_name_all_are_meant_and_a_path_below_python_will_do():
    assert chosen([]) == list(GROUPS)
    assert [group.names() for group in chosen(["python/kmesh/cluster/secret.py", "core.marks"])] == [
        ("kmesh_bpf.core.marks",),
        ("kmesh.cluster.secret",),
    ]


@pytest.mark.parametrize("name", ["as", "nothing", "kmesh", ""])
def test_what_is_no_module_is_refused_with_those_that_there_are(name):
    with pytest.raises(UnknownModuleError, match=r"is none of .*kmesh_bpf\.core\.sas"):
        chosen([name])
