# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from kmesh.cluster.documents import manifests

from kmesh_bpf import ConfigError
from tests.unit.cluster import kube

A, B = kube.pod("a"), kube.pod("b")


def test_yaml_may_hold_several_documents_empty_ones_among_them():
    assert manifests(f"---\n# none\n---\n{yaml.safe_dump(A)}---\n{yaml.safe_dump(B)}".encode(), ".yaml") == [A, B]


def test_json_may_hold_several_documents():
    assert manifests(f" {json.dumps(A)}\n\n{json.dumps(B, indent=1)}\n".encode(), ".json") == [A, B]


def test_json_is_read_from_a_yaml_file_too():
    assert manifests(json.dumps(A, indent="\t").encode(), ".yml") == [A]


def test_json_may_hold_what_yaml_cannot():
    assert manifests(b'{"kind": "x", "a": "\\ud83d\\ude00 \\/"}', ".json") == [{"kind": "x", "a": "\U0001f600 /"}]


@pytest.mark.parametrize("text", ["=", "<<", "2026-07-01", "2026-31-12", "2026-07-01T25:00:00Z"])
def test_what_kubectl_does_not_quote_is_text(text):
    assert manifests(f"kind: x\na: {text}\nb:\n- {text}\n".encode(), ".yaml") == [{"kind": "x", "a": text, "b": [text]}]


def test_a_mapping_may_still_be_merged_into_another():
    assert manifests(b"a: &a {b: 1}\nc: {<<: *a, d: 2}\n", ".yaml") == [{"a": {"b": 1}, "c": {"b": 1, "d": 2}}]


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_byte_order_mark_is_none_of_the_content(suffix):
    assert manifests(b"\xef\xbb\xbf" + json.dumps(A).encode(), suffix) == [A]


@pytest.mark.parametrize("kind", ["List", "PodList"])
def test_a_list_is_its_items(kind):
    assert manifests(json.dumps({"apiVersion": "v1", "kind": kind, "items": [A, B]}).encode(), ".yaml") == [A, B]


def test_the_items_of_a_typed_list_are_of_its_type():
    bare = {name: value for name, value in A.items() if name not in ("apiVersion", "kind")}
    assert manifests(json.dumps({"apiVersion": "v1", "kind": "PodList", "items": [bare]}).encode(), ".json") == [A]


@pytest.mark.parametrize("items", [None, []])
def test_a_list_may_be_empty(items):
    assert manifests(json.dumps({"kind": "List", "items": items}).encode(), ".json") == []


def test_a_kind_that_only_ends_like_a_list_is_an_object():
    assert manifests(b"kind: AllowList\nspec: 1\n", ".yaml") == [{"kind": "AllowList", "spec": 1}]


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_an_empty_file_holds_nothing(suffix):
    assert manifests(b" \n", suffix) == []


@pytest.mark.parametrize(
    ("content", "suffix", "sentence"),
    [
        (b"a: 1\nb: c: d\n", ".yaml", "line 2: mapping values are not allowed in this context"),
        (b"a: 1\nb: [1, 2\n", ".yaml", "line 3: "),
        (b"a: 1\n\tb: 2\n", ".yaml", "line 2: "),
        (b"a: 1\nb: *nowhere\n", ".yaml", "line 2: "),
        (b"a: 1\nb: !secret x\n", ".yaml", "line 2: "),
        (b"a: 1\nb: !deadbeef x\n", ".yaml", "line 2: could not determine a constructor for the tag"),
        (b"a: 1\nb: !deadbeef'x' x\n", ".yaml", "line 2: could not determine a constructor for the tag"),
        (b"a: 1\nb: *deadbeef\n", ".yaml", "line 2: found undefined alias"),
        (b"a: 1\nb: \x01\n", ".yaml", "line 2: "),
        (b"a: 1\nb: \xff\n", ".yaml", "line 2: not UTF-8"),
        (b"a: 0x_\n", ".yaml", "a value is not what it looks like, or is tagged as; put it in quotes"),
        (b"a: !!int deadbeef\n", ".yaml", "a value is not what it looks like, or is tagged as; put it in quotes"),
        (b"a: !!int\n", ".yaml", "a value is not what it looks like, or is tagged as; put it in quotes"),
        (b"a: !!bool deadbeef\n", ".yaml", "a value is not what it looks like, or is tagged as; put it in quotes"),
        (b"- " * 50_000, ".yaml", "line 1: nested too deep: more than 200 mappings and lists in one another"),
        (b'{"a": 1,\n "b": }\n', ".json", "line 2: Expecting value"),
        (b'{"a": 1}\n{"b"\n', ".json", "line 3: Expecting ':' delimiter"),
        (b'{"a": 1}\n\n]', ".json", "line 3: Expecting value"),
        (b"[" * 100_000, ".json", "nested too deep: more than 200 mappings and lists in one another"),
        (b"\n" + b"[" * 201 + b"]" * 201, ".json", "line 2: nested too deep"),
        (b"\n" + b"[" * 201 + b"]" * 201, ".yaml", "line 2: nested too deep"),
        (b'{"a": NaN}', ".json", "NaN is no value in JSON"),
        (b'{"a": -Infinity}', ".json", "-Infinity is no value in JSON"),
        (b"kind: Pod\n---\njust text\n", ".yaml", "document 2 is no object"),
        (b"[1]", ".json", "document 1 is no object"),
        (b"kind: List\nitems: 5\n", ".yaml", "document 1: items of List are no list of objects"),
        (b"kind: List\nitems: [5]\n", ".yaml", "document 1: items of List are no list of objects"),
        (b"kind: List\nitems: [{kind: List}]\n", ".yaml", "document 1: a List in a List"),
        (b"&a\nkind: List\nitems: [*a]\n", ".yaml", "line 3: an alias stands within what it repeats"),
        (b"a: &a {<<: *a}\n", ".yaml", "line 1: an alias stands within what it repeats"),
    ],
)
def test_a_broken_file_is_refused_with_the_line(content, suffix, sentence):
    with pytest.raises(ConfigError) as caught:
        manifests(content, suffix)
    assert str(caught.value).startswith(sentence)
    assert "deadbeef" not in str(caught.value)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode), st.sampled_from([".yaml", ".json"]))
def test_any_bytes_make_manifests_or_a_config_error(content, suffix):
    try:
        manifests(content, suffix)
    except ConfigError as error:
        assert str(error)


def bomb(levels, repeat, merge=False):
    """Each level stands ``repeat`` times in the next one."""
    start = "{k: 1}" if merge else "[x]"
    lines = [f"a0: &a0 {start}"]
    for level in range(1, levels + 1):
        inner = ", ".join([f"*a{level - 1}"] * repeat)
        lines.append(f"a{level}: &a{level} " + (f"{{<<: [{inner}]}}" if merge else f"[{inner}]"))
    return "\n".join(lines).encode()


@pytest.mark.parametrize("merge", [False, True])
def test_aliases_that_stand_for_too_much_are_refused_before_anything_is_made_of_them(merge):
    with pytest.raises(ConfigError, match=r"line \d+: its aliases stand for more than 100000 values"):
        manifests(bomb(12, 10, merge), ".yaml")
    assert manifests(bomb(2, 10, merge), ".yaml")


def test_aliases_are_counted_over_all_documents_of_a_file():
    document = b"a: &a [" + b"x, " * 1000 + b"x]\nb: [" + b"*a, " * 60 + b"*a]\n"
    assert manifests(document, ".yaml")
    with pytest.raises(ConfigError, match="its aliases stand for"):
        manifests(document + b"---\n" + document, ".yaml")


def test_an_anchor_is_of_its_document():
    with pytest.raises(ConfigError, match="line 3: "):
        manifests(b"a: &a 1\n---\nb: *a\n", ".yaml")


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
@pytest.mark.parametrize("depth", [199, 200])
def test_what_is_nested_as_deep_as_may_be_is_read(suffix, depth):
    assert manifests(b'{"a":' * (depth - 1) + b"[]" + b"}" * (depth - 1), suffix)


NUMBERS = ["9" * 5000, "-" + "9" * 5000, "1" + "0" * 10_000 + ".5", "1." + "3" * 5000]


@pytest.mark.parametrize("text", NUMBERS)
@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_number_of_too_many_digits_is_text_and_takes_nothing_else_away(text, suffix):
    assert manifests(f'{{"a": {text}, "b": 1}}'.encode(), suffix) == [{"a": text, "b": 1}]


@pytest.mark.parametrize(
    "text", ["0x" + "f" * 5000, "0b" + "1" * 5000, "0" + "7" * 5000, "1" + ":59" * 5000, "1:" * 5000 + "1.5"]
)
def test_so_is_one_in_the_other_ways_that_yaml_has_of_writing_it(text):
    assert manifests(f"a: {text}\n".encode(), ".yaml") == [{"a": text}]


@pytest.mark.parametrize("number", [0, (1 << 64) - 1, -(1 << 63)])
@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_numbers_of_64_bits_are_numbers(number, suffix):
    assert manifests(f'{{"a": {number}}}'.encode(), suffix) == [{"a": number}]


@pytest.mark.parametrize("number", [0.30000000000000004, 2.220446049250313e-16, 1.7976931348623157e308])
@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_so_are_fractions_as_python_writes_them(number, suffix):
    assert manifests(json.dumps({"a": number}).encode(), suffix) == [{"a": number}]


@pytest.mark.parametrize(
    "text",
    [b" " * 1_000_000, b"\n" * 1_000_000, b"a: " * 300_000, b"? " * 300_000, b"&a " * 300_000, b"#" * 1_000_000,
     b"[" * 300_000, b"- {" * 100_000, b"'" * 300_000, b"a: |\n" + b" \n" * 300_000, b"!" * 300_000, b"%TAG " * 100_000],
    ids=lambda text: repr(text[:6]),
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".yaml", ".json"])
@pytest.mark.timeout(60)
def test_a_long_file_of_nonsense_takes_no_time_to_speak_of(text, suffix):
    try:
        manifests(text, suffix)
    except ConfigError as error:
        assert len(str(error)) < 300
