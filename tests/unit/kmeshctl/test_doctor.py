# SPDX-License-Identifier: Apache-2.0
"""kmeshctl doctor: what it prints, and its exit status; it needs no cluster and asks nobody."""

import io
import json

import pytest
import yaml
from kmesh.kmeshctl.cli import main

import kmesh_bpf
from kmesh_bpf import Finding, Settings, Severity
from kmesh_bpf.errors import UnsupportedError

ERROR = Finding(Severity.ERROR, "marks", "a rule", "it drops", "ip rule del")
WARNING = Finding(Severity.WARNING, "clock", "it is off", "reports look old")
NOTE = Finding(Severity.NOTE, "XFRM", "3 SAs", "so what", "ip xfrm state")


def doctor(monkeypatch, found, *argv):
    asked = []
    monkeypatch.setattr(kmesh_bpf, "diagnose", lambda *what: asked.append(what) or found, raising=False)
    out, errors = io.StringIO(), io.StringIO()
    code = main(["doctor", *argv], io.StringIO(), out, errors, {})
    return code, out.getvalue(), errors.getvalue(), asked


def test_people_read_what_why_and_the_way_out(monkeypatch):
    code, text, _, _ = doctor(monkeypatch, (ERROR, WARNING, NOTE))
    assert code == 1
    assert text == (
        "ERROR    marks: a rule\n         it drops\n         mend: ip rule del\n"
        "WARNING  clock: it is off\n         reports look old\n"
        "NOTE     XFRM: 3 SAs\n         so what\n         mend: ip xfrm state\n"
        "\n1 error, 1 warning, 1 note\n"
    )


@pytest.mark.parametrize(
    ("found", "code", "last"),
    [
        ((), 0, "nothing is in the way"),
        ((NOTE, NOTE), 0, "nothing is in the way; 2 notes"),
        ((WARNING, NOTE), 3, "1 warning, 1 note"),
        ((ERROR, ERROR), 1, "2 errors"),
    ],
)
def test_the_exit_status_is_by_the_worst(monkeypatch, found, code, last):
    answer = doctor(monkeypatch, found)
    assert (answer[0], answer[1].splitlines()[-1]) == (code, last)


@pytest.mark.parametrize(("form", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_programs_get_all_of_it(monkeypatch, form, load):
    code, text, _, _ = doctor(monkeypatch, (ERROR,), "-o", form)
    assert (code, load(text)) == (
        1,
        {
            "well": False,
            "findings": [
                {"severity": "error", "check": "marks", "what": "a rule", "why": "it drops", "mend": "ip rule del"}
            ],
        },
    )
    assert load(doctor(monkeypatch, (NOTE,), "-o", form)[1])["well"] is True


def test_it_takes_what_the_daemon_was_started_with(monkeypatch):
    asked = doctor(monkeypatch, (), "--pin-root", "/sys/fs/bpf/x", "--mark-mask=0x7f")[3]
    ((root, settings),) = asked
    assert (str(root), settings) == ("/sys/fs/bpf/x", Settings(mark_mask=0x7F))


@pytest.mark.parametrize("mask", ["0xff00", "x", "0x40"])
def test_a_mask_that_cannot_be_one_is_refused(monkeypatch, mask):
    code, _, said, asked = doctor(monkeypatch, (), f"--mark-mask={mask}")
    assert (code, asked, len(said.splitlines())) == (2, [], 1)


def test_whoever_may_not_ask_is_told_in_a_line(monkeypatch):
    def refuse(*_):
        raise UnsupportedError("permission for XFRM", "run as root")

    monkeypatch.setattr(kmesh_bpf, "diagnose", refuse, raising=False)
    errors = io.StringIO()
    assert main(["doctor"], io.StringIO(), io.StringIO(), errors, {}) == 1
    assert errors.getvalue() == "kmeshctl: permission for XFRM is not available: run as root\n"
