# SPDX-License-Identifier: Apache-2.0
"""The way to an API server: HTTP by urllib3, with the address, trust and credentials of an Access.

The typed models of the ``kubernetes`` package are not used: 100,000 pods take minutes and gigabytes to become such.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import urllib3

from kmesh.cluster.kubernetes import access
from kmesh.cluster.kubernetes.access import ACCOUNT, HOST, Access
from kmesh.cluster.kubernetes.asking import AS_USUAL, Asking
from kmesh.cluster.kubernetes.comeback import Comeback
from kmesh.cluster.kubernetes.kubeconfig import AUTHORIZATION, Target
from kmesh.cluster.kubernetes.patience import BODY_SECONDS, Limit, limited, make_impatient
from kmesh.cluster.kubernetes.resources import OF_DAEMONS, UNAUTHORIZED, common, described, refusal
from kmesh.errors import ApiError
from kmesh_bpf import ConfigError, __version__

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 30.0
"""For the next bytes of an answer, not for the whole of it."""
MOST_CONNECTIONS = 64
MOST_BYTES, MOST_REASON = 1 << 30, 1 << 16
"""Of an answer: 100,000 pods in one list are less; and of one that says why it is none."""
REASON_SECONDS = 10.0
"""For the whole of what an answer says of why it is none."""
RELOAD_SECONDS = 1.0
"""Credentials that were refused are read anew, at most this often."""
JSON, APPLY, MERGE = "application/json", "application/apply-patch+yaml", "application/merge-patch+json"

Load = Callable[[], Access]
"""Gives address, trust and credentials as they are now, or raises ConfigError."""


class Connection:
    """One API server; its methods may be called from several threads. ``rights``: how to get those that are missing.

    ``asking``: how long a request may take that is no watch.

    Raises:
        ConfigError: the configuration cannot be read.

    """

    def __init__(self, load: Load, rights: str = OF_DAEMONS, asking: Asking = AS_USUAL) -> None:
        self._load, self._rights, self._asking = load, rights, asking
        self._lock = threading.Lock()
        self._tried_at = 0.0
        self._refused = ""
        self.comeback = Comeback(time.monotonic)
        try:
            self._session = self._open()
        except ConfigError as error:
            raise ConfigError(f"the cluster's configuration cannot be used: {error}") from error

    @property
    def server(self) -> str:
        """The server's URL."""
        return self._session.access.target.server

    def close(self) -> None:
        """Close connections that nobody uses."""
        self._session.pool.clear()

    def call(
        self,
        verb: str,
        what: str,
        method: str,
        path: str,
        body: Any = None,
        content: str = JSON,
        *,
        kinds: Container[str],
    ) -> dict[str, Any]:
        """Send a request; give the answer's object, of one of the ``kinds``.

        ``verb`` and ``what`` are for the sentence, should it fail.

        Raises:
            ApiError: the server cannot be reached, refuses, or answers with something else.

        """
        text = self.fetch(verb, what, method, path, body, content)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict) or value.get("kind") not in kinds or value.get("status") == "Failure":
            raise self.odd(f"an answer to: {verb} {what}", text)
        return value

    def odd(self, wanted: str, text: bytes) -> ApiError:
        """Make the error for an answer that is another one than was ``wanted``."""
        self.comeback.away()
        between = "is there a proxy, or a page to log in at, in between?"
        return ApiError(f"the API server {self.server} gives {described(text)} instead of {wanted}; {between}")

    def fetch(self, verb: str, what: str, method: str, path: str, body: Any = None, content: str = JSON) -> bytes:
        """Send a request; give the answer's body as it is.

        Raises:
            ApiError: the server cannot be reached, or refuses.

        """
        seconds, silence = self._asking.at_most(BODY_SECONDS), self._asking.at_most(ANSWER_SECONDS)
        with self.open(verb, what, method, path, body, content, silence) as answer:
            try:
                with limited(seconds, answer.shut_down):
                    return self._read(answer, f"cannot {verb} {what}")
            except TimeoutError as error:
                why = f"the answer of {self.server} does not come to its end within {seconds:g} s"
                raise ApiError(f"cannot {verb} {what}: {why}") from error

    def _read(self, answer: Answer, cannot: str) -> bytes:
        pieces, size = [], 0
        for piece in self.stream(answer):
            pieces.append(piece)
            size += len(piece)
            if size > MOST_BYTES:
                raise ApiError(f"{cannot}: the answer of {self.server} has no end")
        return b"".join(pieces)

    def open(
        self,
        verb: str,
        what: str,
        method: str,
        path: str,
        body: Any = None,
        content: str = JSON,
        seconds: float = ANSWER_SECONDS,
    ) -> Answer:
        """Send a request; give the answer with its body still to come, ``seconds`` being the longest silence.

        Raises:
            ApiError: the server cannot be reached, or refuses.

        """
        for attempt in (1, 2):
            session = self._session
            if session.access.expires <= time.time() and self._renew(session):
                session = self._session
            response = self._send(session, method, path, body, content, seconds)
            if 200 <= response.status < 300:
                self.comeback.answered()
                return Answer(response)
            with Answer(response) as answer:
                limit = Limit(REASON_SECONDS, answer.shut_down)
                said = self._why(answer)
                limit.cancel()
            if response.status == UNAUTHORIZED and attempt == 1 and self._renew(session):
                continue
            break
        if common(response.status):
            self.comeback.away()
        raise refusal(verb, what, response.status, said, self._rights)

    def stream(self, answer: Answer) -> Iterator[bytes]:
        """Give the body of an answer piece by piece, as it comes.

        Raises:
            ApiError: it breaks off.

        """
        try:
            yield from answer.response.stream(1 << 16)
        except (urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError) as error:
            # The last two: urllib3 and ssl, when another thread has shut the socket down.
            raise self._failed(error) from error

    def _why(self, answer: Answer) -> bytes:
        """Give the beginning of an answer that is none."""
        to = urlsplit(answer.response.headers.get("Location") or "")
        if 300 <= answer.response.status < 400 and to.hostname:
            # Not the whole address: it may hold a token.
            return f"it sends us on to {to.scheme or 'http'}://{to.hostname}, where no API server is".encode()
        said = b""
        with suppress(ApiError):  # it has said that it refuses; why is more than one can count on
            for piece in self.stream(answer):
                said += piece
                if len(said) >= MOST_REASON:
                    break
        return said

    def _send(
        self, session: _Session, method: str, path: str, body: Any, content: str, seconds: float
    ) -> urllib3.BaseHTTPResponse:
        target = session.access.target
        headers = urllib3.HTTPHeaderDict({"User-Agent": f"kmesh-ipsec/{__version__}", "Accept": JSON})
        for name, value in target.headers:
            headers.add(name, value)  # a line each: several groups are several lines
        if token := session.access.token():
            headers[AUTHORIZATION] = f"Bearer {token}"
        data = None
        if body is not None:
            headers["Content-Type"] = content
            data = json.dumps(body)
        try:
            response: urllib3.BaseHTTPResponse = session.pool.request(
                method,
                target.server + path,
                body=data,
                headers=headers,
                timeout=urllib3.Timeout(connect=self._asking.at_most(CONNECT_SECONDS), read=seconds),
                retries=False,
                redirect=False,  # the token is for this server
                preload_content=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            if isinstance(error, urllib3.exceptions.SSLError) and target.plugin is None:
                with suppress(ApiError):  # certificates, and those that are trusted, are replaced in their files
                    self._renew(session)
            raise self._failed(error) from error
        except ValueError:
            # Not chained: http.client quotes the header that it refuses, and in it the token.
            raise ApiError(
                f"no request to {self.server} can be made: a header, or its path, is not fit for it"
            ) from None
        return response

    def _failed(self, error: Exception) -> ApiError:
        self.comeback.away()
        proxy = self._session.access.target.proxy
        by = f" by the proxy {urlsplit(proxy).hostname}" if proxy else ""
        return ApiError(f"the API server {self.server} cannot be reached{by}: {_reason(error)}")

    def _renew(self, refused: _Session) -> bool:
        """Read the configuration anew, unless another thread has just done so; tell whether it is a newer one.

        Raises:
            ApiError: it cannot be read.

        """
        with self._lock:
            if self._session is not refused:
                return True
            if time.monotonic() - self._tried_at >= RELOAD_SECONDS:
                try:
                    self._session, self._refused = self._open(), ""
                except ConfigError as error:
                    self._refused = str(error)
                else:
                    refused.pool.clear()
                    return True
            if self._refused:
                why = "the credentials are not accepted or have expired, and others cannot be had"
                raise ApiError(f"{why}: {self._refused}", UNAUTHORIZED)
            return False

    def _open(self) -> _Session:
        try:
            found = self._load()
            return _Session(found, _pool(found))
        finally:
            self._tried_at = time.monotonic()


@dataclass(frozen=True, slots=True)
class _Session:
    """Credentials, and the connections that were opened with the trust and the certificate that belong to them."""

    access: Access
    pool: urllib3.PoolManager


class Answer:
    """An answer whose body is still to come; leave it by ``with``."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self.response = response

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        # A connection whose answer was not read to its end must not be used again.
        self.response.close()
        self.response.release_conn()

    def shut_down(self) -> None:
        """End the body, from whatever thread: who reads it finds it broken off."""
        try:
            self.response.shutdown()
        except (ValueError, RuntimeError, OSError):
            return  # it has come to its end by itself


def connect(
    kubeconfig: str | None,
    context: str | None,
    environment: Mapping[str, str],
    rights: str = OF_DAEMONS,
    asking: Asking = AS_USUAL,
) -> Connection:
    """Give the connection that was asked for, else that of the pod we are in, else the environment's kubeconfig.

    Raises:
        ConfigError: there is no cluster, or its configuration cannot be read.

    """
    inside = environment.get(HOST) and (ACCOUNT / "token").exists()
    if inside and not kubeconfig and not context:
        return Connection(lambda: access.enter(asking.named(access.of_pod(environment))), rights, asking)
    files, paths = access.kubeconfigs(kubeconfig, environment)

    def there() -> list[str]:
        return [one for one in paths if os.path.exists(one)]  # noqa: PTH110 # Path's may raise

    if not there():
        if kubeconfig:
            raise ConfigError(f"--kubeconfig {kubeconfig} is not there")
        raise ConfigError(
            f"there is no cluster: {files} is not there, and this is no pod; give --kubeconfig FILE or --manifests DIR"
        )

    def load() -> Access:
        return access.enter(asking.named(access.of_kubeconfig(there() or paths, context, environment)))

    return Connection(load, rights, asking)


def _pool(found: Access) -> urllib3.PoolManager:
    """Make the connections of an Access.

    Raises:
        ConfigError: they go by a proxy of a kind for which something is missing here.

    """
    target = found.target
    settings: dict[str, Any] = {"maxsize": MOST_CONNECTIONS}
    if found.tls is not None:
        settings["ssl_context"] = found.tls
    if found.tls is not None and target.server_name:
        settings["server_hostname"] = target.server_name
    if target.insecure:
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # one of ours has been given
    if not target.proxy:
        return make_impatient(urllib3.PoolManager(**settings))
    return _proxy_pool(target, settings)


def _proxy_pool(target: Target, settings: dict[str, Any]) -> urllib3.PoolManager:
    parts = urlsplit(target.proxy)
    if parts.scheme.startswith("socks"):
        try:
            from urllib3.contrib.socks import SOCKSProxyManager  # noqa: PLC0415 # PySocks need not be there
        except ImportError as error:
            why = "needs PySocks, which is not installed here; name a proxy of HTTP, or install it"
            raise ConfigError(f"{target.source}: proxy-url: {parts.scheme} {why}") from error
        return SOCKSProxyManager(target.proxy, **settings)
    user, _, address = parts.netloc.rpartition("@")
    headers = urllib3.make_headers(proxy_basic_auth=unquote(user)) if user else None
    return make_impatient(urllib3.ProxyManager(f"{parts.scheme}://{address}", proxy_headers=headers, **settings))


def _reason(error: BaseException) -> str:
    """Give the cause in few words, without addresses of Python objects, the same for the same cause."""
    if isinstance(error, urllib3.exceptions.DecodeError):
        return "its answer cannot be unpacked"
    while isinstance(error, urllib3.exceptions.HTTPError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, urllib3.exceptions.ProtocolError | urllib3.exceptions.SSLError) and error.args:
        cause = error.args[-1]
        error = cause if isinstance(cause, BaseException) else error
    if isinstance(error, TimeoutError | urllib3.exceptions.TimeoutError):
        return "it does not answer"
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted ({error.verify_message.rstrip('.')}); "
            "is the cluster's certificate-authority that of this server?"
        )
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, http.client.IncompleteRead):
        return "its answer breaks off"
    if isinstance(error, http.client.HTTPException) and not isinstance(error, ConnectionError):
        return f"what it answers is no HTTP ({type(error).__name__})"  # what it has sent could be our own token
    return str(error).partition("> ")[2] or str(error) or type(error).__name__
