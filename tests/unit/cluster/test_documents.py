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
        (b"a: 1\nb: \x01\n", ".yaml", "line 2: "),
        (b"a: 1\nb: \xff\n", ".yaml", "line 2: not UTF-8"),
        (b"a: 0x_\n", ".yaml", "a value is not what it looks like, or is tagged as; put it in quotes"),
        (b"a: !!int deadbeef\n", ".yaml", "a value is not what it looks like, or is tagged as; put it in quotes"),
        (b"a: !!int\n", ".yaml", "a value is not what it looks like, or is tagged as; put it in quotes"),
        (b"a: !!bool deadbeef\n", ".yaml", "a value is not what it looks like, or is tagged as; put it in quotes"),
        (b"- " * 50_000, ".yaml", "line 1: exceeded maximum nesting depth"),
        (b'{"a": 1,\n "b": }\n', ".json", "line 2: Expecting value"),
        (b'{"a": 1}\n{"b"\n', ".json", "line 3: Expecting ':' delimiter"),
        (b'{"a": 1}\n\n]', ".json", "line 3: Expecting value"),
        (b"[" * 100_000, ".json", "nested too deep"),
        (b"kind: Pod\n---\njust text\n", ".yaml", "document 2 is no object"),
        (b"[1]", ".json", "document 1 is no object"),
        (b"kind: List\nitems: 5\n", ".yaml", "document 1: items of List are no list of objects"),
        (b"kind: List\nitems: [5]\n", ".yaml", "document 1: items of List are no list of objects"),
        (b"&a\nkind: List\nitems: [*a]\n", ".yaml", "document 1: a List in a List"),
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
