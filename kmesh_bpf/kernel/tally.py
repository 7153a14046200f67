# SPDX-License-Identifier: Apache-2.0
"""What the entries of a map add up to: told anew by each reading, kept up to date by what we write ourselves.

A reading in pieces is not of one moment. What we write meanwhile may have come into it or not, for nobody tells in
which order a hash is read; so more than one sum may be right. All are kept: there are few, and of 64 bits.
"""

from __future__ import annotations

SUM_BITS = 64
MOST_SUMS = 1 << 12
"""As many as come of a dozen entries written during one reading."""
UNKNOWN: frozenset[int] = frozenset()


class Reading:
    """The entries of one map read piece by piece, from the first to the last."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._found = 0
        self.meanwhile: frozenset[int] = frozenset((0,))
        """What our own writes may have added since it began; UNKNOWN: too many."""

    @property
    def tells(self) -> bool:
        """Whether it can be compared with anything: not where we have written too much meanwhile."""
        return bool(self.meanwhile)

    def take(self, piece: int) -> None:
        """Add what a piece adds up to."""
        self._found += piece

    def end(self) -> frozenset[int]:
        """Give what the map may add up to now; UNKNOWN: it is to be read once more."""
        self._tally.readings.discard(self)
        return frozenset(_wrapped(self._found + one) for one in self.meanwhile)


class Tally:
    """What one map adds up to."""

    def __init__(self) -> None:
        self.sums = UNKNOWN
        """What may be right."""
        self.readings: set[Reading] = set()

    @property
    def is_kept(self) -> bool:
        """Whether it makes a difference what is written."""
        return bool(self.sums or self.readings)

    def begin(self) -> Reading:
        """Begin a reading; one that is not ended must be given up by :meth:`give_up`."""
        reading = Reading(self)
        self.readings.add(reading)
        return reading

    def give_up(self, reading: Reading) -> None:
        """Forget a reading that breaks off."""
        self.readings.discard(reading)

    def wrote(self, added: int) -> None:
        """Take in that we have written an entry, by what that has added."""
        self.sums = frozenset(_wrapped(one + added) for one in self.sums)
        for reading in self.readings:
            both = reading.meanwhile.union(_wrapped(one + added) for one in reading.meanwhile)
            reading.meanwhile = both if len(both) <= MOST_SUMS else UNKNOWN

    def wrote_together(self, added: int) -> None:
        """Take in the same of many entries at once: a reading under way may have any of them."""
        self.wrote(added)
        for reading in self.readings:
            reading.meanwhile = UNKNOWN

    def wrote_many(self) -> None:
        """Take in that we have written more entries than it is worth while to follow."""
        self.sums = UNKNOWN
        for reading in self.readings:
            reading.meanwhile = UNKNOWN

    def agrees(self, reading: Reading) -> bool:
        """End a reading; tell whether nobody but us has written since the one before."""
        right = self.sums & reading.end()
        self.sums = right or self.sums
        return bool(right)

    def learn(self, reading: Reading) -> None:
        """End a reading that everything was compared with: it is what is right."""
        self.sums = reading.end()


def _wrapped(number: int) -> int:
    return number & ((1 << SUM_BITS) - 1)
