# SPDX-License-Identifier: Apache-2.0
"""What every command line may say: names that are nearly right, the plugin's name, the version, in whose name."""

import io
import json

import pytest
import yaml
from kmesh.cluster.kubernetes.asking import Asking
from kmesh.cluster.kubernetes.kubeconfig import Target
from kmesh.kmeshctl import commands, completion
from kmesh.kmeshctl.arguments import parser
from kmesh.kmeshctl.cli import main

from kmesh_bpf import ConfigError, PacketFate, __version__
from tests.unit.kmeshctl.keys import HEX


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["stauts"], "did you mean status?"),
        (["help", "explian"], "did you mean explain?"),
        (["secret", "craete"], "did you mean create?"),
        (["status", "--problem"], "did you mean --problems?"),
        (["secret", "create", "--keyfile=x"], "did you mean --key-file?"),
        (["status", "-o", "ymal"], "did you mean yaml?"),
    ],
)
def test_what_is_nearly_a_word_of_ours_is_answered_with_it(kmeshctl, words, meant):
    status, out, err = kmeshctl(*words)
    assert (status, out) == (2, "")
    assert meant in err


def test_what_is_like_no_word_of_ours_or_is_a_key_is_answered_with_none(kmeshctl):
    for words in (["frobnicate"], ["status", "--frobnicate"], ["secret", HEX]):
        assert "did you mean" not in kmeshctl(*words)[2]


@pytest.mark.parametrize("argv", [["--version"], ["version"]])
def test_the_version_may_be_asked_for_either_way(kmeshctl, argv):
    assert kmeshctl(*argv, cluster=False) == (0, f"kmeshctl {__version__}\n", "")


def plugin(*argv):
    out, err = io.StringIO(), io.StringIO()
    return main(argv, io.StringIO(), out, err, {}, program="kubectl kmesh"), out.getvalue(), err.getvalue()


@pytest.mark.parametrize("argv", [["--help"], ["status", "--help"], ["help", "secret", "create"], []])
def test_as_a_plugin_its_help_and_examples_are_kubectl_s(argv):
    status, out, _ = plugin(*argv)
    assert status == 0
    assert out.startswith("usage: kubectl kmesh ")
    assert "  kubectl kmesh " in out.partition("examples:")[2]
    assert "  kmeshctl " not in out


def test_as_a_plugin_its_errors_are_too_and_their_ways_out_can_be_pasted(tmp_path):
    assert plugin("stauts")[2].startswith("kubectl kmesh: ")
    assert plugin("stauts")[2].endswith("(see kubectl kmesh --help)\n")
    assert plugin("--manifests", str(tmp_path), "secret", "get")[2].endswith("make one: kubectl kmesh secret create\n")
    assert plugin("version")[1] == f"kubectl kmesh {__version__}\n"


@pytest.mark.parametrize("command", [["version"], ["secret", "get"]])
@pytest.mark.parametrize("form", ["table", "wide", "json", "yaml", "text"])
def test_every_answer_has_every_form(kmeshctl, command, form):
    kmeshctl("secret", "create")
    status, out, _ = kmeshctl(*command, "-o", form)
    assert status == 0
    if form in ("json", "yaml"):
        assert (json.loads if form == "json" else yaml.safe_load)(out)
    else:
        assert out.rstrip("\n")
        assert not out.startswith(("{", "[", "-"))


def test_lengths_of_time_are_read_as_kubectl_reads_them_and_nonsense_is_refused(kmeshctl):
    def read(text):
        return parser().parse_args(["status", f"--request-timeout={text}"]).request_timeout

    assert [read(text) for text in ("5s", "2m", "30", "0", "0s")] == [5.0, 120.0, 30.0, 0.0, 0.0]
    assert "is no length of time" in kmeshctl("status", "--request-timeout=soon")[2]


HEADERS = (("Impersonate-User", "old"), ("Impersonate-Group", "g"), ("Authorization", "x"))


def test_who_is_named_takes_the_place_of_whom_the_kubeconfig_names():
    target = Target("k", "https://x", headers=HEADERS)
    assert Asking().named(target) is target
    assert set(Asking("ann", ("a", "b")).named(target).headers) == {
        ("Authorization", "x"),
        ("Impersonate-User", "ann"),
        ("Impersonate-Group", "a"),
        ("Impersonate-Group", "b"),
    }


@pytest.mark.parametrize("asking", [Asking("", ("a",)), Asking("a\nb"), Asking("a", ("b\r\n",))])
def test_a_name_that_no_request_can_carry_is_refused(asking):
    with pytest.raises(ConfigError, match="--as"):
        asking.named(Target("k", "https://x"))


def test_a_bound_shortens_what_takes_longer_and_nothing_else():
    assert [Asking(timeout=one).at_most(30.0) for one in (0.0, 5.0, 60.0)] == [30.0, 5.0, 30.0]


def test_what_is_known_without_what_brings_it_is_the_same():
    assert tuple(fate.value for fate in PacketFate) == commands.FATES
    assert tuple(completion.SHELLS) == commands.SHELLS


def test_a_folder_has_nobody_to_be_asked_in_another_s_name(kmeshctl):
    assert "--manifests names a cluster of its own" in kmeshctl("status", "--as=ann")[2]
