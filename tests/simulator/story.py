# SPDX-License-Identifier: Apache-2.0
"""What happened, in sentences, with the time of each since the beginning."""

from __future__ import annotations

from collections.abc import Callable


class Story:
    """Lines; ``clock`` is the world's. With ``loud``, each is printed as it is told."""

    def __init__(self, loud: bool = False) -> None:
        self.loud = loud
        self.lines: list[str] = []
        self.clock: Callable[[], float] = lambda: 0.0
        self._began: float | None = None

    def tell(self, sentence: str) -> None:
        """Add a sentence."""
        now = self.clock()
        if self._began is None:
            self._began = now
        line = f"{now - self._began:9.2f} s  {sentence}"
        self.lines.append(line)
        if self.loud:
            print(line, flush=True)
