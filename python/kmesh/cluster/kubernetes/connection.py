"""The way to an API server: address, trust and credentials from the ``kubernetes`` package, HTTP from its urllib3 pool.

Its typed models are not used: decoding 100,000 pods into them takes minutes and gigabytes.
"""

from __future__ import annotations

import json
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
import yaml
from kubernetes.client import Configuration
from kubernetes.client.rest import RESTClientObject
from kubernetes.config import ConfigException, load_incluster_config, load_kube_config
from kubernetes.config.incluster_config import SERVICE_HOST_ENV_NAME, SERVICE_TOKEN_FILENAME

from kmesh.cluster.kubernetes.comeback import Comeback
from kmesh.cluster.kubernetes.resources import UNAUTHORIZED, common, refusal
from kmesh.errors import ApiError
from kmesh_bpf import ConfigError, __version__

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 30.0
"""For the next bytes of an answer, not for the whole of it."""
MOST_CONNECTIONS = 64
RELOAD_SECONDS = 1.0
"""Credentials that were refused are read anew, at most this often."""
DEFAULT_KUBECONFIG = "~/.kube/config"
JSON, APPLY, MERGE = "application/json", "application/apply-patch+yaml", "application/merge-patch+json"

Load = Callable[[Configuration], None]
"""Fills in address, trust and credentials as they are now."""


class Connection:
    """One API server; its methods may be called from several threads.

    Raises:
        ConfigError: the configuration cannot be read.

    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._loaded_at = 0.0
        self.comeback = Comeback(time.monotonic)
        self._session = self._open()

    @property
    def server(self) -> str:
        """The server's URL."""
        return str(self._session.configuration.host)

    def close(self) -> None:
        """Close connections that nobody uses."""
        self._session.pool.clear()

    def call(
        self, verb: str, what: str, method: str, path: str, body: Any = None, content: str = JSON
    ) -> dict[str, Any]:
        """Send a request; give the answer's object. ``verb`` and ``what`` are for the sentence, should it fail.

        Raises:
            ApiError: the server cannot be reached, refuses, or answers with something else than an object.

        """
        try:
            value = json.loads(self.fetch(verb, what, method, path, body, content))
        except (ValueError, RecursionError) as error:
            raise self._failed(error) from error
        if not isinstance(value, dict):
            raise self._failed(ValueError("it answers with something that is no object"))
        return value

    def fetch(self, verb: str, what: str, method: str, path: str, body: Any = None, content: str = JSON) -> bytes:
        """Send a request; give the answer's body as it is.

        Raises:
            ApiError: the server cannot be reached, or refuses.

        """
        with self.open(verb, what, method, path, body, content) as answer:
            return self._body(answer)

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
            response = self._send(session, method, path, body, content, seconds)
            if 200 <= response.status < 300:
                self.comeback.answered()
                return Answer(response)
            with Answer(response) as answer:
                said = self._body(answer)
            if response.status == UNAUTHORIZED and attempt == 1 and self._renew(session):
                continue
            break
        if common(response.status):
            self.comeback.away()
        raise refusal(verb, what, response.status, said)

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

    def _body(self, answer: Answer) -> bytes:
        return b"".join(self.stream(answer))

    def _send(
        self, session: _Session, method: str, path: str, body: Any, content: str, seconds: float
    ) -> urllib3.BaseHTTPResponse:
        headers = {"User-Agent": f"kmesh-ipsec/{__version__}", "Accept": JSON}
        data = None
        if body is not None:
            headers["Content-Type"] = content
            data = json.dumps(body)
        try:
            with self._lock:  # it may read a file anew, or run a program
                credentials = session.configuration.get_api_key_with_prefix("BearerToken")
            if credentials:
                headers["Authorization"] = credentials
            response: urllib3.BaseHTTPResponse = session.pool.request(
                method,
                session.configuration.host + path,
                body=data,
                headers=headers,
                timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=seconds),
                retries=False,
                preload_content=False,
            )
        except (urllib3.exceptions.HTTPError, OSError, ConfigException) as error:
            raise self._failed(error) from error
        return response

    def _failed(self, error: Exception) -> ApiError:
        self.comeback.away()
        return ApiError(f"the API server {self.server} cannot be reached: {_reason(error)}")

    def _renew(self, refused: _Session) -> bool:
        """Read the configuration anew, unless another thread has just done so; tell whether it is a newer one."""
        with self._lock:
            if self._session is not refused:
                return True
            if time.monotonic() - self._loaded_at < RELOAD_SECONDS:
                return False
            try:
                self._session = self._open()
            except ConfigError:
                return False
            refused.pool.clear()
            return True

    def _open(self) -> _Session:
        configuration = Configuration()
        try:
            self._load(configuration)
        except yaml.YAMLError as error:
            # Not its text: that may quote the file, and so a token.
            raise ConfigError("the cluster's configuration cannot be used: the kubeconfig is no YAML") from error
        except (ConfigException, OSError, TypeError, ValueError) as error:
            said = str(error).strip().partition("\n")[0]
            raise ConfigError(f"the cluster's configuration cannot be used: {said}") from error
        if not str(configuration.host).startswith(("https://", "http://")):
            raise ConfigError(f"the cluster's server {configuration.host!r} is no URL; write https://HOST:PORT")
        configuration.connection_pool_maxsize = MOST_CONNECTIONS
        self._loaded_at = time.monotonic()
        return _Session(configuration, RESTClientObject(configuration).pool_manager)


@dataclass(frozen=True, slots=True)
class _Session:
    """Credentials, and the connections that were opened with the trust and the certificate that belong to them."""

    configuration: Configuration
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


def connect(kubeconfig: str | None, context: str | None, environment: Mapping[str, str]) -> Connection:
    """Give the connection that was asked for, else that of the pod we are in, else the environment's kubeconfig.

    Raises:
        ConfigError: there is no cluster, or its configuration cannot be read.

    """
    inside = environment.get(SERVICE_HOST_ENV_NAME) and Path(SERVICE_TOKEN_FILENAME).exists()
    if inside and not kubeconfig and not context:
        return Connection(load_incluster_config)
    files = kubeconfig or environment.get("KUBECONFIG") or DEFAULT_KUBECONFIG
    if not any(Path(one).expanduser().exists() for one in files.split(os.pathsep) if one):
        if kubeconfig:
            raise ConfigError(f"--kubeconfig {kubeconfig} is not there")
        raise ConfigError(
            f"there is no cluster: {files} is not there, and this is no pod; give --kubeconfig FILE or --manifests DIR"
        )

    def load(configuration: Configuration) -> None:
        load_kube_config(files, context, configuration, persist_config=False)  # type: ignore[no-untyped-call] # it ships none

    return Connection(load)


def _reason(error: BaseException) -> str:
    """Give the cause in few words, without addresses of Python objects, the same for the same cause."""
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
    return str(error).partition("> ")[2] or str(error) or type(error).__name__
