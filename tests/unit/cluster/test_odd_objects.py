# SPDX-License-Identifier: Apache-2.0
"""Whatever stands in a field of an object: what cannot be used is refused in a sentence that can be printed, and is not quoted at length."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kmesh.cluster.objects import parse

from kmesh_bpf import ConfigError
from tests.unit.cluster import kube
from tests.unit.cluster.test_objects import INFO, NODE, POD, SERVICE, changed

HALF = "\ud800"
LAUGHS = ["ha"] * 100_000
TEXTS = [
    (kube.namespace(), "metadata.labels.a"),
    (NODE, "status.nodeInfo.bootID"),
    (NODE, "metadata.uid"),
    (NODE, "status.addresses.0.type"),
    (POD, "spec.nodeName"),
    (POD, "status.phase"),
    (POD, "metadata.creationTimestamp"),
    (POD, "spec.containers.0.name"),
    (POD, "metadata.annotations.a"),
    (INFO, "spec.bootID"),
    (INFO, "spec.addresses.0"),
    (INFO, "spec.podCIDRS.0"),
    (INFO, "metadata.annotations.a"),
]


def refused(manifest) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(manifest)
    sentence = str(caught.value)
    assert sentence.isprintable()
    assert len(sentence) < 300
    return sentence


def with_parts(manifest, path, value):
    """Change a field below mappings that need not be there yet."""
    made = json.loads(json.dumps(manifest))
    *way, last = path.split(".")
    one = made
    for part in way:
        one = one[int(part)] if isinstance(one, list) else one.setdefault(part, {})
    one[int(last) if isinstance(one, list) else last] = value
    return made


@pytest.mark.parametrize("value", [HALF, f"a{HALF}b", LAUGHS, {"a": LAUGHS}], ids=["half", "within", "list", "mapping"])
@pytest.mark.parametrize(("manifest", "path"), TEXTS, ids=[path for _, path in TEXTS])
def test_what_is_no_text_that_can_be_written_is_refused_wherever_it_stands_and_not_quoted(manifest, path, value):
    sentence = refused(with_parts(manifest, path, value))
    assert sentence.startswith(f"{manifest['kind']} ")
    assert path.rpartition(".")[0].partition(".")[0] in sentence


@pytest.mark.parametrize("path", ["spec.bootID", "spec.addresses.0", "spec.podCIDRS.0", "metadata.uid"])
def test_a_text_of_a_megabyte_is_refused_and_not_quoted(path):
    assert path.partition(".")[0] in refused(with_parts(INFO, path, "1" * 1_000_000))


@pytest.mark.parametrize("path", ["spec.addresses.0", "spec.podCIDRS.0"])
def test_what_is_too_long_for_an_address_is_not_quoted_to_its_end(path):
    assert "…' is too long for an address" in refused(with_parts(INFO, path, "1" * 100))


def test_an_annotation_may_be_long():
    assert parse(with_parts(POD, "metadata.annotations.a", "x" * 200_000)).annotations == {"a": "x" * 200_000}


@pytest.mark.parametrize("manifest", [POD, kube.namespace()])
@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("a", "x" * 63, None),
        ("a", "x" * 64, "metadata.labels: 'a' has 64 characters, more than 63"),
        ("a", "0x" + "f" * 5000, "metadata.labels: 'a' has 5002 characters, more than 63"),
        ("x" * 253 + "/" + "y" * 63, "", None),
        ("x" * 318, "", f"metadata.labels: the key '{'x' * 64}…' is too long: more than 317 characters"),
    ],
)
def test_labels_are_as_long_as_the_server_takes_them(manifest, key, value, sentence):
    labelled = with_parts(manifest, "metadata.labels", {key: value})
    if sentence is None:
        assert parse(labelled).labels == {key: value}
    else:
        assert refused(labelled).endswith(sentence)


def test_annotations_are_all_together_as_long_as_the_server_takes_them():
    parse(with_parts(POD, "metadata.annotations", {"a": "x" * ((256 << 10) - 1)}))
    sentence = refused(with_parts(POD, "metadata.annotations", {"a": "x" * (128 << 10), "b": "x" * (128 << 10)}))
    assert sentence == "Pod default/web: metadata.annotations has 262146 characters, more than 262144"


@pytest.mark.parametrize(("value", "text"), [(True, "true"), (7, "7"), (0.5, "0.5"), (None, "")])
def test_a_label_that_somebody_forgot_to_quote_is_as_if_quoted(value, text):
    assert parse(with_parts(POD, "metadata.labels.a", value)).labels["a"] == text


@pytest.mark.parametrize("name", [HALF, "a\nb", "a b", "a/b", "\x1b[2J", "\u202e", "x" * 254, "a\x00"])
@pytest.mark.parametrize("field", ["metadata.name", "metadata.namespace"])
def test_what_nothing_can_be_called_is_no_name(name, field):
    assert f"{field}, " in refused(with_parts(POD, field, name))


@pytest.mark.parametrize("value", [LAUGHS, {"a": 1}, 5, True])
def test_a_namespace_or_version_that_is_no_text_is_refused_and_not_quoted(value):
    assert refused(with_parts(POD, "metadata.namespace", value)) == "Pod web: metadata.namespace is no name"
    assert (
        refused(with_parts(INFO, "apiVersion", value))
        == "KmeshNodeInfo kmesh-system/n2: apiVersion  is not kmesh.net/v1alpha1"
    )


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=5)  # lone surrogates too
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=5,
)
PATHS = [
    (manifest, path)
    for manifest in (kube.namespace(), NODE, POD, INFO, kube.secret(kube.entry()), SERVICE)
    for path in ("kind", "apiVersion", "metadata", "metadata.name", "metadata.namespace", "metadata.labels", "spec")
] + [
    (NODE, "status"),
    (NODE, "status.addresses"),
    (NODE, "status.addresses.0"),
    (NODE, "status.nodeInfo"),
    (NODE, "spec.podCIDR"),
    (POD, "spec.containers"),
    (POD, "status.podIPs"),
    (POD, "status.podIP"),
    (INFO, "spec.addresses"),
    (INFO, "spec.podCIDRS"),
    (INFO, "metadata.annotations"),
    (INFO, "metadata.ownerReferences"),
    (SERVICE, "spec.clusterIPs"),
    (SERVICE, "spec.loadBalancerIP"),
    (SERVICE, "status.loadBalancer"),
]


@given(st.sampled_from(PATHS), JUNK)
def test_junk_in_any_field_makes_an_object_or_a_config_error(place, junk):
    try:
        parse(changed(*place, junk))
    except ConfigError as error:
        assert str(error)
