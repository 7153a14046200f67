# SPDX-License-Identifier: Apache-2.0
import pytest

from kmesh_bpf.errors import DecodeError, KernelError
from kmesh_bpf.kernel.xfrm_stat import parse, read


def test_counters_are_given_by_the_kernel_s_names():
    text = "XfrmInError             \t0\nXfrmInNoStates          \t12\nXfrmInStateProtoErrorXXXX\t3\n"
    assert parse(text) == {"XfrmInError": 0, "XfrmInNoStates": 12, "XfrmInStateProtoErrorXXXX": 3}


@pytest.mark.parametrize("line", ["XfrmInError", "XfrmInError x", "XfrmInError -1", "a b 3"])
def test_a_line_that_is_no_counter_is_refused(line):
    with pytest.raises(DecodeError, match="is not a name and a number"):
        parse(f"XfrmInNoPols 1\n{line}\n")


def test_a_kernel_without_statistics_has_none(tmp_path):
    assert read(tmp_path / "absent") == {}


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(KernelError, match=str(tmp_path)):
        read(tmp_path)
