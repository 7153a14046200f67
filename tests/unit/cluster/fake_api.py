# SPDX-License-Identifier: Apache-2.0
"""An API server as a Connection shows it, for days that a real one does not have at will."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import parse_qsl, urlsplit

from kmesh.cluster.kubernetes.comeback import Comeback
from kmesh.cluster.kubernetes.resources import PLURALS, described
from kmesh.errors import ApiError

Parameters = dict[str, str]
KINDS = {plural: kind for kind, plural in PLURALS.items()}


def listed(*manifests: dict, version: int = 1, more: str = "") -> dict:
    """Give a page of a list; ``more``: the token of the next one."""
    return {"metadata": {"resourceVersion": str(version), "continue": more}, "items": list(manifests)}


def event(kind: str, manifest: dict) -> dict:
    return {"type": kind, "object": manifest}


class FakeApi:
    """``answer`` gives the list, and ``watch`` the events, for a plural and the parameters asked with, or raises.

    What they give as bytes is sent as it stands.

    A watch goes on after its events until it is cut, unless ``ends``. ``asked`` holds (plural, parameters).
    """

    server = "https://fake"

    def __init__(
        self,
        answer: Callable[[str, Parameters], dict],
        watch: Callable[[str, Parameters], list[dict]] = lambda *_: [],
        ends: bool = False,
    ) -> None:
        self.asked: list[tuple[str, Parameters]] = []
        self.comeback = Comeback(time.monotonic)
        self._answer, self._watch, self._ends = answer, watch, ends

    def fetch(self, _verb: str, _what: str, _method: str, path: str, *_: object) -> bytes:
        plural, asked = self._note(path)
        answer = self._answer(plural, asked)
        return answer if isinstance(answer, bytes) else json.dumps({"kind": f"{KINDS[plural]}List"} | answer).encode()

    def odd(self, wanted: str, text: bytes) -> ApiError:
        return ApiError(f"{described(text)} instead of {wanted}")

    def open(self, _verb: str, _what: str, _method: str, path: str, **_: object) -> "FakeAnswer":
        return FakeAnswer(self._watch(*self._note(path)), self._ends)

    @staticmethod
    def stream(answer: "FakeAnswer") -> Iterator[bytes]:
        yield from (one if isinstance(one, bytes) else json.dumps(one).encode() + b"\n" for one in answer.events)
        answer.over.wait()

    def close(self) -> None:
        pass

    def _note(self, path: str) -> tuple[str, Parameters]:
        parts = urlsplit(path)
        self.asked.append((parts.path.rpartition("/")[2], dict(parse_qsl(parts.query))))
        return self.asked[-1]


class FakeAnswer:
    def __init__(self, events: list[dict], ends: bool) -> None:
        self.events, self.over = events, threading.Event()
        if ends:
            self.shut_down()

    def __enter__(self) -> "FakeAnswer":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def shut_down(self) -> None:
        self.over.set()
