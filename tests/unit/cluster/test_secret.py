# SPDX-License-Identifier: Apache-2.0
import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kmesh.cluster.secret import (
    KEPT,
    LONGEST_HISTORY,
    Keyring,
    accept,
    after,
    digest,
    history,
    holds_key,
    next_keys,
    parse_key_text,
    parse_keys,
    render,
    render_deleted,
    uncounted,
)

from kmesh_bpf import ConfigError, Key
from tests.unit.cluster import kube

MATERIAL = bytes(range(200, 236))
TRACES = (
    MATERIAL.hex(),
    MATERIAL.hex()[:12],
    base64.b64encode(MATERIAL).decode(),
    base64.b64encode(MATERIAL)[:8].decode(),
)
SPIS = st.integers(1, (1 << 32) - 1)
KEYS = st.binary(min_size=36, max_size=36).map(Key)


def key(number: int) -> Key:
    return Key(kube.material(number))


def ring(current: int, *older: int) -> Keyring:
    return Keyring(current, {version: key(version) for version in (current, *older)})


@st.composite
def keyrings(draw):
    versions = draw(st.lists(SPIS, min_size=1, max_size=KEPT + 1, unique=True))
    return Keyring(max(versions), {version: draw(KEYS) for version in versions})


def test_the_format_is_the_one_go_nodes_write():
    material = base64.b64encode(MATERIAL).decode()
    plain = '{"spi":1,"aeadKeyName":"rfc4106(gcm(aes))","aeadKey":"' + material + '","length":128}'
    manifest = {"kind": "Secret", "data": {"ipSec": base64.b64encode(plain.encode()).decode()}}
    assert parse_keys(manifest) == Keyring(1, {1: Key(MATERIAL)})


def test_what_we_write_is_that_format_to_the_letter():
    manifest = render(Keyring(1, {1: Key(MATERIAL)}))
    assert manifest["metadata"] == {"name": "kmesh-ipsec", "namespace": "kmesh-system"}
    assert (manifest["apiVersion"], manifest["kind"], set(manifest["data"])) == ("v1", "Secret", {"ipSec"})
    assert json.loads(base64.b64decode(manifest["data"]["ipSec"])) == {
        "spi": 1,
        "aeadKeyName": "rfc4106(gcm(aes))",
        "aeadKey": base64.b64encode(MATERIAL).decode(),
        "length": 128,
    }


def test_previous_keys_stand_newest_first():
    manifest = render(ring(5, 2, 4, 3))
    assert [one["spi"] for one in json.loads(base64.b64decode(manifest["data"]["ipSecPrevious"]))] == [4, 3, 2]


@given(keyrings())
def test_what_is_rendered_reads_back_the_same(keyring):
    assert parse_keys(render(keyring)) == keyring


def test_string_data_is_read_too_and_counts_before_data():
    manifest = kube.secret(kube.entry(1))
    manifest["stringData"] = {"ipSec": json.dumps(kube.entry(2, MATERIAL))}
    assert parse_keys(manifest) == Keyring(2, {2: Key(MATERIAL)})


@pytest.mark.parametrize(
    ("manifest", "sentence"),
    [
        ({"kind": "Secret"}, "has no data key ipSec"),
        ({"data": {"other": "eA=="}}, "has no data key ipSec"),
        ({"data": "text"}, "has no data key ipSec"),
        ({"data": {"ipSec": "%%%"}}, "ipSec: it is not base64"),
        ({"data": {"ipSec": 5}}, "ipSec: it is not base64"),
        ({"data": {"ipSec": "ä"}}, "ipSec: it is not base64"),
        ({"stringData": {"ipSec": {"spi": 1}}}, "ipSec: it is not JSON"),
        (kube.secret(MATERIAL), "ipSec: it is not JSON"),
        (kube.secret(b'{"spi": 1, "aeadKey": "' + base64.b64encode(MATERIAL)), "ipSec: it is not JSON"),
        (kube.secret(b"[" * 100_000), "ipSec: it is not JSON"),
        (kube.secret([]), "ipSec: it is no JSON object"),
        (kube.secret(None), "ipSec: it is no JSON object"),
        *(
            (kube.secret(kube.entry(spi)), "ipSec: spi is no number from 1")
            for spi in (0, -1, True, 1.0, "1", None, 1 << 32)
        ),
        (kube.secret(kube.entry(aeadKeyName="cbc(aes)")), "ipSec: aeadKeyName is not rfc4106(gcm(aes)), the only"),
        (kube.secret(kube.entry(aeadKeyName=MATERIAL.hex())), "ipSec: aeadKeyName is not rfc4106(gcm(aes)), the only"),
        *((kube.secret(kube.entry(length=bits)), "ipSec: length is not 128") for bits in (96, 64, None, "128")),
        (kube.secret(kube.entry(material=MATERIAL[:35])), "ipSec: aeadKey: a key is 36 bytes (32 key, 4 salt), not 35"),
        (kube.secret(kube.entry(material=MATERIAL * 2)), "ipSec: aeadKey: a key is 36 bytes (32 key, 4 salt), not 72"),
        (kube.secret(kube.entry(aeadKey=None)), "ipSec: aeadKey: a key is 36 bytes (32 key, 4 salt), not 0"),
        (kube.secret(kube.entry(aeadKey=MATERIAL.hex() + "!")), "ipSec: aeadKey is not base64"),
        (kube.secret(kube.entry(aeadKey=36)), "ipSec: aeadKey is not base64"),
        (kube.secret(kube.entry(2), kube.entry(1)), "ipSecPrevious: it is no list"),
        (kube.secret(kube.entry(99), [kube.entry(1)] * 65), "ipSecPrevious: it holds 65 keys, more than 64"),
        (kube.secret(b"9" * 5000), "ipSec: it is not JSON"),
        (kube.secret(b"[" * 5000), "ipSec: it is not JSON"),
        (kube.secret(kube.entry(aeadKeyName="\ud800")), "ipSec: aeadKeyName is not rfc4106(gcm(aes)), the only"),
        (kube.secret(kube.entry(2), [MATERIAL.hex()]), "ipSecPrevious: it is no JSON object"),
        (kube.secret(kube.entry(2), [kube.entry(2, MATERIAL)]), "ipSecPrevious: SPI 2 does not belong there"),
        (kube.secret(kube.entry(2), [kube.entry(3, MATERIAL)]), "ipSecPrevious: SPI 3 does not belong there"),
        (kube.secret(kube.entry(3), [kube.entry(1), kube.entry(1)]), "ipSecPrevious: SPI 1 does not belong there"),
    ],
)
def test_a_secret_that_cannot_be_used_is_refused_in_a_sentence_without_key_material(manifest, sentence):
    with pytest.raises(ConfigError) as caught:
        parse_keys(manifest)
    assert str(caught.value).startswith("Secret kmesh-ipsec")
    assert sentence in str(caught.value)
    assert not any(trace in str(caught.value) for trace in TRACES)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=9), lambda one: st.lists(one) | st.dictionaries(st.text(), one)
    )
)
def test_any_json_makes_keys_or_a_config_error(value):
    with pytest.raises(ConfigError):
        parse_keys(kube.secret(value))


def test_a_key_never_shows_in_a_keyring():
    assert not any(trace in repr(Keyring(1, {1: Key(MATERIAL)})) for trace in TRACES)


def test_the_first_keys_are_taken_whatever_their_spi():
    assert accept(None, ring(7)) == ring(7)


@pytest.mark.parametrize("new", [ring(2, 1), ring(2), ring(3, 2, 1), ring(9)])
def test_the_same_or_newer_keys_may_follow(new):
    assert accept(ring(2, 1), new) == new


def test_an_spi_that_goes_backwards_is_refused():
    with pytest.raises(ConfigError, match="SPI 2 goes backwards: 3 is in force"):
        accept(ring(3), ring(2))


@pytest.mark.parametrize("version", [1, 2])
def test_another_key_under_a_known_spi_is_refused(version):
    new = Keyring(3, dict(ring(3, 2, 1).keys) | {version: Key(MATERIAL)})
    with pytest.raises(ConfigError, match=f"another key under the known SPI {version}") as caught:
        accept(ring(2, 1), new)
    assert not any(trace in str(caught.value) for trace in TRACES)


@pytest.mark.parametrize(
    "held", [None, Keyring(2, {1: key(1), 2: key(2)})], ids=["a daemon that starts", "one that runs"]
)
def test_an_older_version_that_is_a_former_key_once_more_is_left_out(held):
    """Found by scripts/simulate: SPI 3 was refused while it was the current one, and taken when it stood among older ones."""
    taken = accept(held, Keyring(4, {4: key(4), 3: key(1), 2: key(2), 1: key(1)}))
    assert (taken.current, sorted(taken.keys)) == (4, [1, 2, 4])


def test_what_a_daemon_remembers_tells_a_former_key_too():
    held = Keyring(2, {1: key(1), 2: key(2)})
    assert sorted(accept(held, Keyring(4, {4: key(4), 3: key(1)})).keys) == [4]


def test_the_first_spi_is_1():
    assert next_keys(None, {}, key(1)) == ring(1)


def test_the_next_spi_is_one_more_and_the_old_key_stays():
    assert next_keys(ring(1), {"n1": 1}, key(2)) == ring(2, 1)


def test_a_key_that_came_back_is_not_kept_for_those_who_cannot_know_that_it_did():
    again = Keyring(3, {3: key(1), 2: key(2), 1: key(1)})
    following = next_keys(again, {}, key(4))
    assert following.keys == {4: key(4), 2: key(2), 1: key(1)}
    assert digest(key(1)) in following.used


def test_after_a_delete_the_spi_goes_on_above_every_announced_one():
    assert next_keys(None, {"n1": 3, "n2": 7, "n3": 5}, key(8)) == ring(8)


def test_only_so_many_older_keys_are_kept():
    keyring = None
    for version in range(1, 9):
        keyring = next_keys(keyring, {}, key(version))
    assert keyring == ring(8, 7, 6, 5, 4)


def test_there_is_no_spi_above_the_highest():
    with pytest.raises(ConfigError, match=r"SPI 4294967295 is in use \(n3\), and there is none above it"):
        next_keys(None, {"n3": (1 << 32) - 1}, key(1))
    with pytest.raises(ConfigError, match=r"SPI 4294967295 is in use \(the Secret\)"):
        next_keys(ring((1 << 32) - 1), {}, key(1))


@given(st.none() | keyrings(), st.dictionaries(st.text(max_size=3), SPIS | st.integers(0, 2000)), KEYS)
def test_what_follows_is_accepted_by_whoever_holds_the_keys_before(held, announced, new):
    known = set(held.keys.values()) if held else set()
    counted = [spi for name, spi in announced.items() if name not in uncounted(held, announced)]
    highest = max([held.current if held else 0, *counted])
    if (
        highest == (1 << 32) - 1
        or len(set(new.reveal())) == 1
        or new in known
        or len(known) < len(held.keys if held else ())
    ):
        return
    following = next_keys(held, announced, new)
    assert following.current == highest + 1
    assert following.used == after(held)
    assert following.keys[following.current] == new
    assert len(following.keys) <= KEPT + 1
    assert accept(held, following) == following
    read = parse_keys(render(following))
    assert (read, read.used) == (following, following.used)


@pytest.mark.parametrize(
    ("held", "announced", "left_out"),
    [
        (None, {}, {}),
        (None, {"a": 0}, {}),
        (None, {"a": 4_000_000_000}, {}),  # nobody knows better
        (None, {"a": 1, "b": 4_000_000_000}, {"b": 4_000_000_000}),
        (None, {"a": 1, "b": 2, "c": 1003}, {"c": 1003}),
        (None, {"a": 1, "b": 2, "c": 1002}, {}),
        (None, {"a": 0, "b": 0, "c": 5000}, {}),
        (None, {"a": 1, "b": 900, "c": 1800, "d": 2700}, {}),
        (ring(1), {"a": 1, "b": 1001, "c": 2002}, {"c": 2002}),
        (ring(5000), {"a": 1, "b": 5001}, {}),
        (ring(5), {"z": 9000, "a": 8000}, {"a": 8000, "z": 9000}),
    ],
)
def test_an_announcement_behind_a_gap_does_not_count(held, announced, left_out):
    assert uncounted(held, announced) == left_out


def test_a_key_is_accepted_once_only_whatever_its_spi():
    again = Keyring(3, {3: key(1), 2: key(2)})
    with pytest.raises(ConfigError, match="the key is the one of SPI 1;"):
        accept(ring(2, 1), again)
    with pytest.raises(ConfigError, match="the key is the one of SPI 1;"):
        accept(None, Keyring(3, {3: key(1), 2: key(2), 1: key(1)}))
    for held, new in (
        (None, Keyring(3, {3: key(1)}, (digest(key(1)),))),
        (ring(2), Keyring(3, {3: key(1)}, (digest(key(1)),))),
        (Keyring(2, {2: key(2)}, (digest(key(1)),)), Keyring(3, {3: key(1)})),
    ):
        with pytest.raises(ConfigError, match="was in force before"):
            accept(held, new)


@pytest.mark.parametrize("byte", [0, 0x5A, 0xFF])
def test_one_byte_repeated_is_refused_and_what_is_in_force_stays(byte):
    bad = Key(bytes([byte]) * 36)
    with pytest.raises(ConfigError, match="one byte repeated"):
        accept(None, Keyring(1, {1: bad}))
    with pytest.raises(ConfigError, match="one byte repeated"):
        next_keys(ring(1), {}, bad)
    assert accept(Keyring(1, {1: bad}), Keyring(1, {1: bad})).current == 1
    assert accept(Keyring(1, {1: bad}), Keyring(2, {2: key(2), 1: bad})).current == 2


def test_the_history_is_bounded_newest_first_and_read_leniently():
    keyring = Keyring(1, {1: key(1)}, tuple(f"{number:064x}" for number in range(LONGEST_HISTORY)))
    following = next_keys(keyring, {}, key(2))
    assert len(following.used) == LONGEST_HISTORY
    assert following.used[0] == digest(key(1))
    for odd in (b"no JSON", {}, 7, None, [None, 5, "short", digest(key(1)).upper()]):
        manifest = kube.secret(kube.entry(1))
        manifest["data"]["ipSecUsed"] = kube.secret(odd)["data"]["ipSec"]
        assert history(manifest) == ()
        assert parse_keys(manifest).current == 1
    assert history(None) == history({}) == history({"data": {"ipSecUsed": "%"}}) == ()


def test_a_secret_whose_key_was_deleted_is_no_broken_one():
    left = render_deleted(after(ring(2, 1)))
    assert not holds_key(left)
    assert history(left) == (digest(key(2)), digest(key(1)))
    assert render_deleted(()) is None
    assert not holds_key(None)
    assert holds_key(kube.secret(kube.entry(1)))
    assert holds_key({"kind": "Secret", "data": {"other": "eA=="}})
    with pytest.raises(ConfigError, match="was in force before"):
        next_keys(None, {}, key(1), history(left))


@pytest.mark.parametrize(
    "text", [MATERIAL.hex(), MATERIAL.hex().upper(), MATERIAL.hex() + "\n", f" {MATERIAL.hex()}\r\n"]
)
def test_72_digits_are_a_key(text):
    assert parse_key_text(text) == Key(MATERIAL)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the key is empty"),
        (" \n", "the key is empty"),
        ("xyz", "the key is not hexadecimal"),
        ("0x" + MATERIAL.hex(), "the key is not hexadecimal"),
        (MATERIAL.hex(" "), "the key is not hexadecimal"),
        (f"{MATERIAL.hex()[:36]}\n{MATERIAL.hex()[36:]}", "the key is not hexadecimal"),
        ("\u0660" * 72, "the key is not hexadecimal"),
        (MATERIAL.hex()[:-1], "the key has an odd number of digits (71)"),
        (MATERIAL.hex()[:-2], "the key has 70 digits, not 72"),
        (MATERIAL.hex() * 2, "the key has 144 digits, not 72"),
    ],
)
def test_everything_else_is_refused_with_its_own_sentence(text, sentence):
    with pytest.raises(ConfigError) as caught:
        parse_key_text(text)
    assert str(caught.value).startswith(sentence)
    assert not any(trace in str(caught.value) for trace in TRACES)
