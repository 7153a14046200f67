# SPDX-License-Identifier: Apache-2.0
import threading
import time

from kmesh.cluster.kubernetes.comeback import QUIET_SECONDS, Comeback

LONG = 30.0


class Waiter:
    """Waits in a thread of its own."""

    def __init__(self, comeback: Comeback, seconds: float = LONG, early: bool = True) -> None:
        self.stopping = threading.Event()
        self._thread = threading.Thread(
            target=comeback.wait, args=(seconds, self.stopping), kwargs={"early": early}, daemon=True
        )
        self._thread.start()
        time.sleep(0.05)  # it has begun to wait

    def waits(self, patience: float = 0.1) -> bool:
        self._thread.join(patience)
        return self._thread.is_alive()


def made():
    clock = [100.0]
    return Comeback(lambda: clock[0]), clock


def test_one_answer_after_a_time_away_wakes_all_who_wait_for_that_and_nobody_else():
    comeback, _ = made()
    comeback.away()
    for_it, for_another = [Waiter(comeback), Waiter(comeback)], Waiter(comeback, early=False)
    assert all(one.waits() for one in for_it)
    comeback.answered()
    assert not any(one.waits(5) for one in for_it)
    assert for_another.waits()


def test_an_answer_of_a_server_that_was_never_away_wakes_nobody():
    comeback, _ = made()
    waiter = Waiter(comeback)
    comeback.answered()
    assert waiter.waits()


def test_a_server_that_answers_and_fails_in_turn_keeps_nobody_awake():
    comeback, clock = made()
    comeback.away()
    comeback.answered()
    comeback.away()
    waiter = Waiter(comeback)
    comeback.answered()
    assert waiter.waits()
    clock[0] += QUIET_SECONDS
    comeback.answered()
    assert not waiter.waits(5)


def test_who_is_to_stop_waits_no_longer_once_nudged():
    comeback, _ = made()
    waiter = Waiter(comeback, early=False)
    waiter.stopping.set()
    comeback.nudge()
    assert not waiter.waits(5)


def test_the_time_to_wait_ends_by_itself():
    comeback, _ = made()
    assert not Waiter(comeback, 0.01).waits(5)
