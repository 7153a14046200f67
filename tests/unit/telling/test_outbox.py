# SPDX-License-Identifier: Apache-2.0
import threading
import time
from contextlib import closing

import pytest
from kmesh.errors import ApiError, ClusterError
from kmesh.telling.outbox import MOST_EVENTS, Outbox

AGES = 600.0
"""Seconds that no test waits."""


class Cluster:
    """Takes what is sent, once ``open`` is set; refuses the first ``refusals``."""

    def __init__(self, refusals=0):
        self.taken, self.refusals = [], refusals
        self.open = threading.Event()
        self.open.set()

    def take(self, what):
        self.open.wait()
        if self.refusals:
            self.refusals -= 1
            raise ClusterError("the API server is away")
        self.taken.append(what)

    tell = publish_status = publish_conditions = take


class Refusing(Cluster):
    """Refuses with an HTTP status whatever is in ``refused``."""

    def __init__(self, status, *refused):
        super().__init__()
        self.status, self.refused, self.asked = status, refused, []

    def take(self, what):
        self.asked.append(what)
        if what in self.refused:
            raise ApiError(f"cannot send {what}", self.status)
        super().take(what)

    tell = publish_status = publish_conditions = take


def until(true):
    end = time.monotonic() + 5
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    return true()


def test_what_is_told_is_sent_in_its_order_and_nobody_waits():
    cluster = Cluster()
    cluster.open.clear()
    outbox = Outbox(cluster)
    for number in range(3):
        outbox.tell({"number": number})
    assert cluster.taken == []
    cluster.open.set()
    outbox.close()
    assert cluster.taken == [{"number": number} for number in range(3)]


def test_of_reports_that_wait_only_the_newest_is_sent():
    cluster = Cluster()
    cluster.open.clear()
    with closing(Outbox(cluster)) as outbox:
        outbox.report({"report": 1})
        assert until(lambda: not outbox._report.letters)  # it is under way
        outbox.report({"report": 2})
        outbox.report({"report": 3})
        cluster.open.set()
        assert until(lambda: len(cluster.taken) == 2)
    assert cluster.taken == [{"report": 1}, {"report": 3}]


@pytest.mark.parametrize("send", ["tell", "report", "conditions"])
def test_what_the_cluster_refuses_is_sent_again_and_complained_of_once(send, caplog):
    cluster = Cluster(refusals=3)
    with closing(Outbox(cluster, retry_seconds=0.01)) as outbox:
        getattr(outbox, send)({"a": 1})
        assert until(lambda: cluster.taken == [{"a": 1}])
    assert [record.message for record in caplog.records] == ["the API server is away; trying again"]


@pytest.mark.parametrize("status", [0, 403, 422, 503])
@pytest.mark.parametrize("refused", ["event", "report", "conditions"])
def test_what_is_refused_is_in_nobody_s_way(refused, status):
    cluster = Refusing(status, refused)
    with closing(Outbox(cluster, retry_seconds=AGES)) as outbox:
        for what, send in (("event", outbox.tell), ("report", outbox.report), ("conditions", outbox.conditions)):
            send(what)
            assert until(lambda what=what: cluster.asked[-1:] == [what])
        assert until(lambda: {refused, *cluster.taken} == {"event", "report", "conditions"})


def test_the_report_and_the_conditions_go_before_events_that_wait():
    cluster = Cluster()
    cluster.open.clear()
    outbox = Outbox(cluster)
    outbox.tell("under way")
    assert until(lambda: not outbox._events.letters)
    outbox.tell("event")
    outbox.conditions("conditions")
    outbox.report("report")
    cluster.open.set()
    outbox.close()
    assert cluster.taken == ["under way", "report", "conditions", "event"]


@pytest.mark.parametrize("status", [400, 405, 413, 422])
def test_an_event_at_fault_itself_is_dropped_and_said_once(status, caplog):
    cluster = Refusing(status, "bad")
    with closing(Outbox(cluster, retry_seconds=AGES)) as outbox:
        outbox.tell("bad")
        outbox.tell("good")
        assert until(lambda: cluster.taken == ["good"])
    assert cluster.asked == ["bad", "good"]
    assert [record.message for record in caplog.records] == ["cannot send bad; this Event is dropped"]


@pytest.mark.parametrize("status", [401, 403, 404, 408, 429])
def test_an_event_whose_refusal_may_pass_is_kept_and_lets_others_go_first(status, caplog):
    cluster = Refusing(status, "one", "two")
    with closing(Outbox(cluster, retry_seconds=0.01)) as outbox:
        for what in ("one", "two", "other"):
            outbox.tell(what)
        assert until(lambda: cluster.asked.count("one") > 3)
        assert cluster.taken == ["other"]
        cluster.refused = ()
        assert until(lambda: len(cluster.taken) == 3)
    said = [record.message for record in caplog.records]
    assert said == ["cannot send one; trying again", "cannot send two; trying again"]


@pytest.mark.parametrize("refusals", [1, 2])
def test_events_keep_their_order_while_the_cluster_is_away(refusals):
    cluster = Cluster(refusals=refusals)
    cluster.open.clear()
    with closing(Outbox(cluster, retry_seconds=0.01)) as outbox:
        for number in range(3):
            outbox.tell(number)
        cluster.open.set()
        assert until(lambda: len(cluster.taken) == 3)
    assert cluster.taken == [0, 1, 2]


def test_a_fault_of_ours_costs_one_letter_and_is_told_without_what_it_says(caplog):
    cluster = Cluster()
    faults = [KeyError("secret"), MemoryError()]

    def take(what):
        if faults:
            raise faults.pop()
        cluster.take(what)

    cluster.tell = cluster.publish_status = take
    with closing(Outbox(cluster, retry_seconds=0.01)) as outbox:
        for number, send in enumerate((outbox.tell, outbox.report)):
            send({"number": number})
            assert until(lambda number=number: len(faults) == 1 - number)
        outbox.report({"number": 2})
        assert until(lambda: cluster.taken == [{"number": 2}])
    assert [record.message for record in caplog.records] == [
        "an Event cannot be sent, by a fault of this program: MemoryError",
        "the node's report cannot be sent, by a fault of this program: KeyError",
    ]


def test_of_a_cluster_that_is_away_there_is_one_complaint_whatever_waits(caplog):
    cluster = Cluster(refusals=20)
    with closing(Outbox(cluster, retry_seconds=0.01)) as outbox:
        for send in (outbox.tell, outbox.report, outbox.conditions):
            send({})
        assert until(lambda: len(cluster.taken) == 3)
    assert [record.message for record in caplog.records] == ["the API server is away; trying again"]


def test_a_cluster_that_is_away_again_is_complained_of_again(caplog):
    cluster = Cluster(refusals=1)
    with closing(Outbox(cluster, retry_seconds=0.01)) as outbox:
        for number in (1, 2):
            outbox.report(number)
            assert until(lambda number=number: cluster.taken[-1:] == [number])
            cluster.refusals = 1
    assert len(caplog.records) == 2


def test_of_more_events_than_it_keeps_the_oldest_are_dropped():
    cluster = Cluster()
    cluster.open.clear()
    with closing(Outbox(cluster)) as outbox:
        for number in range(MOST_EVENTS + 50):
            outbox.tell(number)
        cluster.open.set()
        assert until(lambda: cluster.taken[-1:] == [MOST_EVENTS + 49])
    assert len(cluster.taken) <= MOST_EVENTS + 1


@pytest.mark.parametrize(("send", "most"), [("tell", MOST_EVENTS), ("report", 1)])
def test_what_could_not_be_sent_yields_to_newer_ones_for_which_there_is_just_room(send, most):
    cluster = Cluster(refusals=1)
    cluster.open.clear()
    with closing(Outbox(cluster, retry_seconds=0.01)) as outbox:
        for number in range(most + 1):
            getattr(outbox, send)(number)
            assert number or until(lambda: not any(tray.letters for tray in outbox._trays))  # the first is under way
        cluster.open.set()
        assert until(lambda: len(cluster.taken) == most)
    assert cluster.taken == list(range(1, most + 1))


def test_closing_tries_once_more_what_waits_for_its_next_try():
    cluster = Cluster(refusals=1)
    outbox = Outbox(cluster, retry_seconds=AGES)
    outbox.report({})
    assert until(lambda: not cluster.refusals)
    outbox.close()
    assert cluster.taken == [{}]


def test_closing_does_not_wait_for_a_cluster_that_is_away():
    cluster = Cluster(refusals=1000)
    outbox = Outbox(cluster, retry_seconds=AGES)
    for number in range(50):
        outbox.tell(number)
    start = time.monotonic()
    outbox.close()
    assert time.monotonic() - start < 2
    assert 1000 - cluster.refusals <= 2
