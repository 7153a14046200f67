# SPDX-License-Identifier: Apache-2.0
import io
import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from kmesh.cluster.manifests import SECRET_FILE
from kmesh.kmeshctl.arguments import parser
from kmesh.kmeshctl.cli import main

from kmesh_bpf import Key, __version__
from tests.unit.cluster import kube
from tests.unit.kmeshctl.keys import HEX, MATERIAL, OTHER, TRACES, stored


def test_the_guide_s_form_stores_the_first_key_under_spi_1(kmeshctl, tmp_path):
    assert kmeshctl("secret", f"--key={HEX}") == (0, "key stored: SPI 1, rfc4106(gcm(aes))\n", "")
    assert stored(tmp_path).keys == {1: Key(MATERIAL)}


def test_the_same_form_replaces_it_under_the_next_spi_and_keeps_the_old_one(kmeshctl, tmp_path):
    kmeshctl("secret", "--key", HEX)
    assert kmeshctl("secret", f"--key={OTHER}")[1] == "key stored: SPI 2, rfc4106(gcm(aes))\n"
    assert stored(tmp_path).keys == {2: Key(bytes.fromhex(OTHER)), 1: Key(MATERIAL)}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--key", HEX],
        [f"--key={HEX}\n"],
        ["-k", HEX],
        [f"-k={HEX}"],
        [f"-k{HEX}"],
        ["--key-file=-"],
        ["--key-file", "-"],
    ],
)
def test_a_key_may_be_given_in_several_ways(kmeshctl, tmp_path, arguments):
    assert kmeshctl("secret", "create", *arguments, stdin=f"{HEX}\n")[0] == 0
    assert stored(tmp_path).keys == {1: Key(MATERIAL)}


def test_a_key_may_stand_in_a_file(kmeshctl, tmp_path):
    (tmp_path / "key").write_text(f"{HEX}\n")
    assert kmeshctl("secret", "create", "--key-file", str(tmp_path / "key"))[0] == 0
    assert stored(tmp_path).keys == {1: Key(MATERIAL)}


@pytest.mark.parametrize("arguments", [[], ["--random"]])
def test_without_a_key_one_is_made_each_time_another(kmeshctl, tmp_path, arguments):
    assert kmeshctl("secret", "create", *arguments)[0] == 0
    assert kmeshctl("secret", "create", *arguments)[0] == 0
    keyring = stored(tmp_path)
    assert keyring.current == 2
    assert len(set(keyring.keys.values())) == 2


def test_the_folder_may_stand_before_or_behind_the_command(kmeshctl, tmp_path):
    for argv in (
        ["--manifests", str(tmp_path), "secret", f"--key={HEX}"],
        ["secret", f"--manifests={tmp_path}", f"--key={OTHER[2:]}00"],
        ["secret", f"--key={OTHER}", "--manifests", str(tmp_path)],
        ["secret", "create", "--manifests", str(tmp_path)],
        ["--manifests", str(tmp_path), "secret", "create"],
    ):
        assert kmeshctl(*argv, cluster=False)[0] == 0
    assert stored(tmp_path).current == 5


REFUSED = [
    ("", "the key is empty; give 72 hexadecimal digits"),
    ("\n", "the key is empty; give 72 hexadecimal digits"),
    ("xyz", "the key is not hexadecimal: it may hold 0-9, a-f, A-F and nothing else"),
    (f"{HEX[:36]} {HEX[36:]}", "the key is not hexadecimal: it may hold 0-9, a-f, A-F and nothing else"),
    (HEX[:-1], "the key has an odd number of digits (71); give 72"),
    (HEX[:-2], "the key has 70 digits, not 72 (32 bytes of key and 4 of salt)"),
    (HEX + "00", "the key has 74 digits, not 72 (32 bytes of key and 4 of salt)"),
]


@pytest.mark.parametrize(("text", "sentence"), REFUSED)
@pytest.mark.parametrize("form", ["guide", "create", "file"])
def test_a_key_that_cannot_be_used_is_refused_with_its_own_sentence_and_nothing_is_written(
    kmeshctl, tmp_path, form, text, sentence
):
    arguments = {"guide": [f"--key={text}"], "create": ["create", f"--key={text}"], "file": ["create", "--key-file=-"]}
    assert kmeshctl("secret", *arguments[form], stdin=text) == (2, "", f"kmeshctl: {sentence}\n")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["secret", HEX], "invalid choice: '(hidden)'"),
        (["secret", "create", HEX], "unrecognized arguments: (hidden)"),
        (["secret", "create", f"--kye={HEX}"], "unrecognized arguments: --kye=(hidden)"),
        (["secret", f"--key={HEX}", "get"], "--key does not go before get"),
        (["secret", f"--key={HEX}", "create", "--random"], "--key does not go before create"),
        (["secret", "create", f"--key={HEX}", "--random"], "not allowed with argument --key"),
        (["secret", "create", f"--key={HEX}", "--key-file=-"], "not allowed with argument --key"),
        (["secret", "create", "--key"], "argument --key/-k: expected one argument"),
        (["secret", "create", "-k"], "argument --key/-k: expected one argument"),
        (["secret", f"-k{HEX}", "get"], "--key does not go before get"),
        (["help", "secret", HEX], "invalid choice: '(hidden)'"),
        (["help", "frobnicate"], "invalid choice: 'frobnicate'"),
        (["secret", "create", "--rand"], "unrecognized arguments: --rand"),
        (["secret", "get", "-o", "xml"], "argument -o/--output: invalid choice: 'xml'"),
        (["secret", "create", "--key-file", "/nowhere"], "cannot read /nowhere: No such file or directory"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
    ],
)
def test_a_command_line_that_means_nothing_is_refused_in_one_line(kmeshctl, tmp_path, arguments, sentence):
    status, out, err = kmeshctl(*arguments)
    assert (status, out) == (2, "")
    assert sentence in err
    assert not any(tmp_path.iterdir())


def test_a_key_file_that_is_no_text_is_refused_and_none_of_its_bytes_shown(kmeshctl, tmp_path):
    path = tmp_path / "key"
    path.write_bytes(MATERIAL)
    assert kmeshctl("secret", "create", "--key-file", str(path)) == (
        2,
        "",
        f"kmeshctl: {path} is no text; give 72 hexadecimal digits\n",
    )


def test_a_key_file_without_an_end_is_not_read_to_it(kmeshctl):
    assert kmeshctl("secret", "create", "--key-file=/dev/zero")[2].startswith("kmeshctl: the key is not hexadecimal")


NO_CLUSTER = (
    "kmeshctl: there is no cluster: ~/.kube/config is not there, and this is no pod; "
    "give --kubeconfig FILE or --manifests DIR\n"
)


def test_without_a_cluster_nothing_can_be_done(kmeshctl, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kmeshctl("secret", f"--key={HEX}", cluster=False) == (
        2,
        "",
        NO_CLUSTER,
    )
    assert "--kubeconfig /nowhere is not there" in kmeshctl("secret", "get", "--kubeconfig=/nowhere", cluster=False)[2]
    for flag in ("--context=lab", "--kubeconfig=x", "-n=other"):
        assert "--manifests names a cluster of its own" in kmeshctl("secret", "get", flag)[2]
    assert "is no folder" in kmeshctl("secret", "get", "--manifests", "/nowhere", cluster=False)[2]


def test_get_shows_version_and_algorithm_and_hides_the_key(kmeshctl):
    kmeshctl("secret", f"--key={HEX}")
    kmeshctl("secret", "create")
    assert kmeshctl("secret", "get")[1].splitlines() == [
        "SPI   ALGORITHM           ICV   IN FORCE   KEY",
        "2     rfc4106(gcm(aes))   128   yes        (hidden)",
        "1     rfc4106(gcm(aes))   128   no         (hidden)",
    ]


def test_get_shows_the_key_only_when_asked_to(kmeshctl):
    kmeshctl("secret", f"--key={HEX}")
    assert kmeshctl("secret", "get", "--show-key", show=True)[1].splitlines()[1].endswith(f"yes        {HEX}")
    assert json.loads(kmeshctl("secret", "get", "--show-key", "-o", "json", show=True)[1])[0]["key"] == HEX


def test_get_has_a_form_for_programs(kmeshctl):
    kmeshctl("secret", f"--key={HEX}")
    assert json.loads(kmeshctl("secret", "get", "--output=json")[1]) == [
        {"spi": 1, "algorithm": "rfc4106(gcm(aes))", "icvBits": 128, "inForce": True, "key": "(hidden)"}
    ]


@pytest.mark.parametrize("action", ["get", "delete"])
def test_where_there_is_no_key_there_is_nothing_to_show_or_delete(kmeshctl, action):
    assert kmeshctl("secret", action) == (
        1,
        "",
        "kmeshctl: the cluster holds no key (Secret kmesh-system/kmesh-ipsec); make one: kmeshctl secret create\n",
    )


def test_delete_takes_the_key_away_and_leaves_what_tells_that_it_was_in_force(kmeshctl, tmp_path):
    kmeshctl("secret", f"--key={HEX}")
    assert kmeshctl("secret", "delete")[0] == 0
    assert set(yaml.safe_load((tmp_path / SECRET_FILE).read_text())["data"]) == {"ipSecUsed"}
    assert kmeshctl("secret", "get")[0] == 1
    assert kmeshctl("secret", "delete")[0] == 1
    assert kmeshctl("secret", f"--key={HEX}") == (2, "", f"kmeshctl: {BEFORE}\n")
    assert kmeshctl("secret", f"--key={OTHER}")[0] == 0


BEFORE = "the key was in force before; a key must be used once only, make another one"


def test_a_key_is_stored_once_only(kmeshctl, tmp_path):
    for _ in range(2):
        kmeshctl("secret", f"--key={HEX}")
    assert kmeshctl("secret", f"--key={HEX}")[2].startswith("kmeshctl: the key is the one of SPI 1;")
    kmeshctl("secret", f"--key={OTHER}")
    assert kmeshctl("secret", f"--key={HEX}")[2].startswith("kmeshctl: the key is the one of SPI 1;")
    for _ in range(5):
        kmeshctl("secret", "create")
    assert 1 not in stored(tmp_path).keys
    assert kmeshctl("secret", "create", "--key-file=-", stdin=HEX) == (2, "", f"kmeshctl: {BEFORE}\n")
    assert stored(tmp_path).current == 7


@pytest.mark.parametrize("byte", ["00", "5a", "ff"])
def test_one_byte_repeated_is_no_key(kmeshctl, tmp_path, byte):
    sentence = "kmeshctl: the key is one byte repeated; make one: kmeshctl secret create\n"
    assert kmeshctl("secret", "--key=" + byte * 36) == (2, "", sentence)
    assert not (tmp_path / SECRET_FILE).exists()


def test_one_node_s_announcement_far_above_all_others_does_not_count_and_is_told(tmp_path):
    for index, spi in ((1, 3), (2, 4), (3, (1 << 32) - 2)):
        (tmp_path / f"kmeshnodeinfo-n{index}.yaml").write_text(yaml.safe_dump(kube.node_info(index, spi)))
    out, err = io.StringIO(), io.StringIO()
    assert main(["--manifests", str(tmp_path), "secret", "create"], io.StringIO(), out, err) == 0
    assert out.getvalue() == "key stored: SPI 5, rfc4106(gcm(aes))\n"
    assert err.getvalue() == (
        "kmeshctl: n3 announces SPI 4294967294, far above all others; not counted: delete its KmeshNodeInfo: "
        "kubectl delete kmeshnodeinfo -n kmesh-system n3\n"
    )


def test_after_a_delete_the_spi_goes_on_above_every_announced_one(kmeshctl, tmp_path):
    kmeshctl("secret", f"--key={HEX}")
    for index, spi in ((2, 3), (3, 1)):
        (tmp_path / f"kmeshnodeinfo-n{index}.yaml").write_text(yaml.safe_dump(kube.node_info(index, spi)))
    kmeshctl("secret", "delete")
    assert kmeshctl("secret", "create")[1] == "key stored: SPI 4, rfc4106(gcm(aes))\n"


@pytest.mark.parametrize("arguments", [["get"], ["create"], [f"--key={HEX}"]])
def test_a_secret_that_cannot_be_read_is_told_and_can_be_deleted(kmeshctl, tmp_path, arguments):
    (tmp_path / SECRET_FILE).write_text(yaml.safe_dump(kube.secret(kube.entry(1, MATERIAL[:35]))))
    status, _, err = kmeshctl("secret", *arguments)
    assert status == 1
    assert "Secret kmesh-ipsec: ipSec: aeadKey: a key is 36 bytes (32 key, 4 salt), not 35; delete it first" in err
    assert kmeshctl("secret", "delete")[0] == 0
    assert kmeshctl("secret", "create")[0] == 0


def test_a_secret_in_somebody_else_s_file_is_shown_and_not_changed(kmeshctl, tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(kube.secret(kube.entry(4, MATERIAL))))
    assert kmeshctl("secret", "get")[0] == 0
    for arguments in (["create"], ["delete"]):
        status, _, err = kmeshctl("secret", *arguments)
        assert (status, "mine.yaml" in err) == (1, True)


def test_the_version_needs_no_cluster(kmeshctl):
    assert kmeshctl("version", cluster=False) == (0, f"kmeshctl {__version__}\n", "")


def test_the_version_has_a_form_for_programs(kmeshctl):
    assert json.loads(kmeshctl("version", "-o", "json", cluster=False)[1]) == {"version": __version__}


COMMANDS = [
    [],
    ["secret"],
    ["secret", "create"],
    ["secret", "get"],
    ["secret", "delete"],
    ["version"],
    ["status"],
    ["explain"],
    ["completion"],
    ["bundle"],
    ["dashboard"],
    ["man"],
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples_that_can_be_said_and_needs_no_cluster_for_it(kmeshctl, command):
    status, out, _ = kmeshctl(*command, "--help", cluster=False)
    assert (status, out.split()[0]) == (0, "usage:")
    examples = re.findall(r"^  (?:source <\()?kmeshctl (.*?)\)?(?:  +#.*| [>|].*)?$", out, re.MULTILINE)
    assert examples
    for example in examples:
        words = re.sub(r"\$\(.*", HEX, example).split()
        assert words[: len(command)] == command
        assert parser().parse_args(words).command == words[0]


def test_every_example_of_the_secret_works(kmeshctl):
    examples = re.findall(
        r"^  kmeshctl (.*?)(?:  +#.*)?$", kmeshctl("secret", "--help", cluster=False)[1], re.MULTILINE
    )
    assert len(examples) == 5
    for example in examples:
        arguments = re.sub(r"\$\(.*\)", HEX, example).split()
        assert kmeshctl(*arguments, stdin=OTHER)[0] == 0, example


@pytest.fixture
def cluster(tmp_path):
    """Two nodes that announce themselves with SPI 1, and a managed pod on each."""
    objects = [
        *(kube.node(index) for index in (1, 2)),
        *(kube.node_info(index, **{"kmesh.net/ipsec-node-traffic": "true"}) for index in (1, 2)),
        kube.secret(kube.entry(1, MATERIAL)),
        *(kube.pod(f"p{index}", index, labels={"istio.io/dataplane-mode": "Kmesh"}) for index in (1, 2)),
    ]
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(objects))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["explain", "p1", "p2"], 0, "ENCRYPTED with SPI 1"),
        (["explain", "p1", "192.0.2.7"], 1, "CLEAR"),
        (["status"], 1, "n1, n2: it announces itself, and there is no report of it"),
        (["completion", "bash"], 0, "complete -F _kmeshctl kmeshctl"),
    ],
)
def test_commands_about_nodes_and_traffic_answer_on_standard_output(cluster, arguments, status, text):
    out, err = io.StringIO(), io.StringIO()
    assert main(["--manifests", str(cluster), *arguments], io.StringIO(), out, err) == status
    assert text in out.getvalue()
    assert err.getvalue() == ""
    assert not any(trace in out.getvalue() for trace in TRACES)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["explain", "p1", "nobody"], "no pod default/nobody is known"),
        (["explain", "p1"], "the following arguments are required: POD"),
        (["explain", "p1", "p2", "--service-cidr", "10.96"], "argument --service-cidr: '10.96' does not appear to be"),
        (["status", "--watch=soon"], "argument -w/--watch: 'soon' is no number of seconds from 0.1 to 3600"),
        (["status", "--watch=0"], "is no number of seconds from 0.1 to 3600"),
        (["completion", "csh"], "invalid choice: 'csh'"),
    ],
)
def test_questions_that_mean_nothing_are_refused_in_one_line(cluster, kmeshctl, arguments, sentence):
    status, out, err = kmeshctl(*arguments)
    assert (status, out) == (2, "")
    assert sentence in err


COMMAND = [sys.executable, "-c", "from kmesh.kmeshctl.cli import entry; entry()"]


def test_the_console_script_gives_status_output_and_errors(tmp_path):
    env = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([*COMMAND, "secret", "get"], capture_output=True, text=True, check=False, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == NO_CLUSTER


def test_a_reader_that_has_gone_is_no_reason_for_a_traceback():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*COMMAND, "version"], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
