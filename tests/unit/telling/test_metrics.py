# SPDX-License-Identifier: Apache-2.0
import re
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from kmesh.telling.metrics import FAMILIES, labels, render
from kmesh.telling.readiness import judged
from kmesh.telling.record import KINDS, KeyRecord, Record

from tests.unit.core import mesh
from tests.unit.launcher.standin import Passes

SAMPLE = re.compile(r"(?P<name>[a-z_]+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
LABEL = re.compile(r'([a-z]+)="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)')


def page(record: Record, time: float = 1000.0, view_age: float = 0.0) -> dict[str, float]:
    """Give the samples as ``name{labels}`` -> value; every line must be a sample, or HELP and TYPE before one."""
    found, announced = {}, set()
    for line in render(judged(record, time, view_age)).splitlines():
        if line.startswith("# "):
            announced.add(line.split()[2])
            continue
        match = SAMPLE.fullmatch(line)
        assert match, line
        assert re.sub("_(bucket|sum|count)$", "", match["name"]) in announced or match["name"] in announced
        key = line.rpartition(" ")[0].removeprefix("kmesh_ipsec_")
        assert key not in found
        found[key] = float(match["value"])
    return found


def test_a_peer_is_told_with_spi_traffic_and_last_use_of_each_direction():
    passes = Passes()
    passes.run(mesh.view(nodes=2))
    for identity in passes.kernel.sas:
        if identity.mark:
            passes.kernel.use(identity, 1234.0, packets=5)
    found = page(passes.run(mesh.view(nodes=2)))
    way = 'peer="n2",direction='
    assert found[f'peer_spi{{{way}"in"}}'] == found[f'peer_spi{{{way}"out"}}'] == 1
    assert found[f'peer_packets_total{{{way}"in"}}'] == 10  # both families
    assert found[f'peer_packets_total{{{way}"out"}}'] == 0
    assert found[f'peer_last_use_timestamp_seconds{{{way}"in"}}'] == 1234
    assert f'peer_last_use_timestamp_seconds{{{way}"out"}}' not in found
    assert found['peer_ready{peer="n2"}'] == 1
    assert (found["peers_ready"], found["peers_expected"]) == (1, 1)
    assert (found['managed_pods{where="local"}'], found['managed_pods{where="remote"}']) == (1, 1)


def test_replay_and_integrity_failures_are_told_by_peer():
    passes = Passes()
    passes.run(mesh.view(nodes=2))
    for identity, use in passes.kernel.usage.items():
        if identity.mark:
            passes.kernel.usage[identity] = replace(use, replays=2, integrity_failures=3)
    found = page(passes.run(mesh.view(nodes=2)))
    assert found['peer_replay_errors_total{peer="n2"}'] == 4
    assert found['peer_integrity_failures_total{peer="n2"}'] == 6


def test_the_kernel_s_and_the_programs_counters_are_told_by_reason():
    found = page(Passes().run(mesh.view(), counters={"marked": 7, "decrypted": 0}, xfrm_errors={"XfrmInNoPols": 2}))
    assert found['datapath_packets_total{reason="marked"}'] == 7
    assert found['datapath_packets_total{reason="decrypted"}'] == 0
    assert found['xfrm_errors_total{reason="XfrmInNoPols"}'] == 2


def test_the_histogram_of_durations_is_cumulative():
    passes = Passes()
    for seconds in (0.001, 0.02, 0.02, 99.0):
        passes.run(mesh.view(), seconds=seconds)
    found = page(passes.record)
    name = "reconcile_duration_seconds"
    assert [found[f'{name}_bucket{{le="{le}"}}'] for le in ("0.005", "0.01", "0.025", "30.0", "+Inf")] == [
        1,
        1,
        3,
        3,
        4,
    ]
    assert found[f"{name}_count"] == 4
    assert abs(found[f"{name}_sum"] - 99.041) < 1e-9


def test_ages_grow_between_passes_and_times_stand():
    record = Passes().run(mesh.view())
    found = page(record, time=1060.0, view_age=12.5)
    assert (found["key_age_seconds"], found["view_age_seconds"]) == (60, 12.5)
    assert found["last_success_timestamp_seconds"] == 1000


def test_the_key_is_told_by_spi_and_by_whether_the_secret_s_is_refused():
    found = page(Passes().run(mesh.view(), KeyRecord(4, 3, "it goes backwards")))
    assert (found["key_spi"], found["key_announced_spi"], found["key_refused"]) == (4, 3, 1)
    assert "backwards" not in "".join(found)


def test_before_the_first_pass_counters_are_there_and_nothing_is_ready():
    found = page(Record("n1", 1000.0))
    assert (found["ready"], found["key_age_seconds"], found["last_success_timestamp_seconds"]) == (0, 0, 0)
    assert all(found[f'operations_total{{kind="{kind}",result="failed"}}'] == 0 for kind in KINDS)
    assert found['passes_total{result="converged"}'] == 0


def test_every_metric_has_help_in_a_line_and_names_follow_its_type():
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    for family in FAMILIES:
        assert family.help.endswith(".")
        assert "\n" not in family.help
        assert family.name.endswith("_total") == (family.kind == "counter")


def test_samples_carry_the_labels_that_their_family_names():
    passes = Passes()
    passes.run(mesh.view())
    for family in FAMILIES:
        for inside, _ in family.samples(passes.record):
            assert tuple(name for name, _ in LABEL.findall(inside)) == family.labels, family.name


@given(st.text())
def test_any_label_value_can_be_read_back(value):
    inside = labels(peer=value, direction="in")
    assert "\n" not in inside
    (name, coded), rest = LABEL.findall(inside)
    assert (name, rest) == ("peer", ("direction", "in"))
    assert re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], coded) == value
