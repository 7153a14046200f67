import threading
import time
from contextlib import closing

import pytest
from kmesh.errors import ClusterError
from kmesh.launcher.outbox import MOST_EVENTS, Outbox


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
        assert until(lambda: not outbox._newest)  # it is under way
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


def test_of_more_events_than_it_keeps_the_oldest_are_dropped():
    cluster = Cluster()
    cluster.open.clear()
    with closing(Outbox(cluster)) as outbox:
        for number in range(MOST_EVENTS + 50):
            outbox.tell(number)
        cluster.open.set()
        assert until(lambda: cluster.taken[-1:] == [MOST_EVENTS + 49])
    assert len(cluster.taken) <= MOST_EVENTS + 1


def test_closing_does_not_wait_for_a_cluster_that_is_away():
    outbox = Outbox(Cluster(refusals=1000), retry_seconds=60)
    outbox.tell({})
    start = time.monotonic()
    outbox.close()
    assert time.monotonic() - start < 2
