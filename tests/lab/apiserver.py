# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes API server with its etcd, as real as they come, without kubelets or controllers: objects stay as written.

``ApiServer.available()`` builds them where they are not in the cache (``scripts/apiserver``, minutes). RBAC is on;
``kubectl`` acts as an administrator unless told otherwise.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import urllib3

ROOT = Path(__file__).resolve().parents[2]
LOOPBACK = "127.0.0.1"
READY_SECONDS = 120.0
"""About 5 s outside the VM, 30 s inside."""
LESS_WORK = {"GOGC": "400", "GOMAXPROCS": "1"}
"""For Go under emulation: a third less time to start, for some memory; a quarter less work, for no threads that spin."""


def free_port(address: str) -> int:
    """Give a TCP port that nobody listens on at this address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        return server.getsockname()[1]


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class RefusedError(Exception):
    """The server refuses a request of :meth:`ApiServer.request`; ``code`` is the HTTP status."""

    def __init__(self, code: int, body: str) -> None:
        super().__init__(f"{code}: {body}")
        self.code = code


class ApiServer:
    """An etcd and an API server, in the caller's network namespace.

    ``address`` is where the API server listens and what it says of itself; etcd stays on loopback. ``port`` 0: a free
    one. Use it as a context manager: it starts, waits until it is ready, and leaves nothing behind but ``folder``.
    """

    def __init__(
        self,
        folder: Path,
        binaries: Path,
        *,
        address: str = LOOPBACK,
        port: int = 0,
        service_cidr: str = "10.96.0.0/16",
        flags: tuple[str, ...] = (),
    ) -> None:
        self.folder, self.binaries = folder, binaries
        self.address, self.port = address, port or free_port(address)
        self.service_cidr = service_cidr
        self.token = secrets.token_hex(16)
        self._flags = flags
        self._etcd_ports = free_port(LOOPBACK), free_port(LOOPBACK)
        self._etcd: subprocess.Popen[bytes] | None = None
        self._api: subprocess.Popen[bytes] | None = None
        self._pool: urllib3.PoolManager | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def available() -> Path:
        """Give the folder with the programs, building them first where need be."""
        script = str(ROOT / "scripts/apiserver")
        return Path(subprocess.run([script], stdout=subprocess.PIPE, text=True, check=True).stdout.strip())

    @property
    def url(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"https://{host}:{self.port}"

    @property
    def certificate(self) -> Path:
        """The server's certificate, signed by itself."""
        return self.folder / "certificates/apiserver.crt"

    def __enter__(self) -> ApiServer:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- processes

    def start(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Start both and wait until the API server is ready; ``meanwhile`` is called while it starts."""
        self._write_secrets()
        self.start_etcd()
        self.start_api()
        meanwhile()
        self.wait_ready()

    def stop(self) -> None:
        """Kill both."""
        self.kill_api()
        self.kill_etcd()
        if self._pool is not None:
            self._pool.clear()
            self._pool = None

    def start_etcd(self) -> None:
        client, peer = (f"http://{LOOPBACK}:{port}" for port in self._etcd_ports)
        self._etcd = self._run(
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            "--unsafe-no-fsync",
            "--log-level=error",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
        )
        self._wait("etcd is not ready", self._etcd, self._etcd_ready)

    def start_api(self) -> None:
        keys = self.folder / "service-accounts"
        self._api = self._run(
            "kube-apiserver",
            f"--etcd-servers=http://{LOOPBACK}:{self._etcd_ports[0]}",
            f"--cert-dir={self.certificate.parent}",
            f"--bind-address={self.address}",
            f"--advertise-address={self.address}",
            f"--secure-port={self.port}",
            f"--service-account-key-file={keys}.pub",
            f"--service-account-signing-key-file={keys}.key",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--authorization-mode=Node,RBAC",
            f"--service-cluster-ip-range={self.service_cidr}",
            # Nobody makes service accounts in new namespaces here, and no kubelet reaches loopback endpoints.
            "--disable-admission-plugins=ServiceAccount",
            "--endpoint-reconciler-type=none",
            "--delete-collection-workers=8",
            "--v=0",
            *self._flags,
        )

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        assert self._api is not None
        self._wait("the API server is not ready", self._api, self._api_ready, seconds)

    def kill_api(self) -> None:
        self._kill(self._api)
        self._api = None

    def kill_etcd(self) -> None:
        self._kill(self._etcd)
        self._etcd = None

    def pause_api(self) -> None:
        """Let it hang: connections stay open, nothing is answered."""
        assert self._api is not None
        self._api.send_signal(signal.SIGSTOP)

    def resume_api(self) -> None:
        assert self._api is not None
        self._api.send_signal(signal.SIGCONT)

    def lose_everything(self) -> None:
        """Throw etcd's data away, both being stopped: what starts next is another cluster at the same address."""
        shutil.rmtree(self.folder / "etcd")

    def compact(self) -> None:
        """Let etcd forget every revision but the newest: whoever watches from an older one is told 410 Gone."""
        newest = self._ask_etcd("/v3/kv/range", {"key": _base64("none")})["header"]["revision"]
        self._ask_etcd("/v3/kv/compaction", {"revision": newest, "physical": True})

    def store_pods(self, manifests: Iterable[Mapping[str, Any]]) -> None:
        """Write pods, all their fields as this server gave them of another, into etcd: they are there for all watches.

        Under emulation a tenth of the work of the two requests each that a server would want of a client.
        """
        bodies = ({"key": self._pod_key(one), "value": _base64(json.dumps(one))} for one in manifests)
        assert all("header" in answer for answer in self._ask_etcd_often("/v3/kv/put", bodies))

    def forget_pods(self, manifests: Iterable[Mapping[str, Any]]) -> None:
        """Take pods out of etcd: they are gone for all watches."""
        bodies = ({"key": self._pod_key(one)} for one in manifests)
        assert all(answer["deleted"] == "1" for answer in self._ask_etcd_often("/v3/kv/deleterange", bodies))

    # --- clients

    def kubectl(
        self, *arguments: str, stdin: str | None = None, kubeconfig: Path | None = None, check: bool = True
    ) -> str:
        """Run kubectl; give what it prints. A failure is an AssertionError that shows both its outputs."""
        file = kubeconfig or self.kubeconfig("admin", self.token)
        done = subprocess.run(
            [str(self.binaries / "kubectl"), f"--kubeconfig={file}", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **LESS_WORK, "HOME": str(self.folder)},
        )
        assert done.returncode == 0 or not check, f"kubectl {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout if done.returncode == 0 else done.stderr

    def kubeconfig(self, name: str, token: str, namespace: str = "default", url: str = "") -> Path:
        """Write a kubeconfig file whose only context, of this name, uses the token; give its path.

        ``url``: a way to the server other than the direct one.
        """
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "lab", "cluster": {"server": url or self.url, "certificate-authority": str(self.certificate)}}
            ],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": name, "context": {"cluster": "lab", "user": name, "namespace": namespace}}],
            "current-context": name,
        }
        path = self.folder / f"{name}.kubeconfig"
        draft = path.with_suffix(f".{secrets.token_hex(4)}")
        draft.write_text(json.dumps(config))
        draft.chmod(0o600)
        draft.rename(path)
        return path

    def service_account_token(self, namespace: str, name: str, pod: Mapping[str, Any] | None = None) -> str:
        """Make a token of a service account that is there; ``pod``: as stored, the pod whose token it is."""
        spec: dict[str, Any] = {"expirationSeconds": 3600}
        if pod is not None:
            which = {name: pod["metadata"][name] for name in ("name", "uid")}
            spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", **which}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        return str(self.request("POST", path, {"spec": spec})["status"]["token"])

    def request(self, method: str, path: str, body: Any = None, content: str = "application/json") -> dict[str, Any]:
        """Send one request as the administrator; give the answer.

        Raises:
            RefusedError: the server refuses it.

        """
        answer = self._http().request(
            method,
            self.url + path,
            body=None if body is None else json.dumps(body),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": content},
        )
        if answer.status >= 300:
            raise RefusedError(answer.status, answer.data.decode())
        return answer.json()

    # --- inside

    def _write_secrets(self) -> None:
        """Make what the server would make for itself with RSA, which takes it 12 s under emulation, and its tokens."""
        keys, curve = self.folder / "service-accounts", "ec_paramgen_curve:P-256"
        if not keys.with_suffix(".key").exists():
            self._openssl("genpkey", "-algorithm", "EC", "-pkeyopt", curve, "-out", f"{keys}.key")
            self._openssl("pkey", "-in", f"{keys}.key", "-pubout", "-out", f"{keys}.pub")
            self.certificate.parent.mkdir()
            self._openssl(
                *("req", "-x509", "-newkey", "ec", "-pkeyopt", curve, "-nodes", "-days", "2", "-subj", "/CN=lab"),
                *("-addext", f"subjectAltName=IP:{self.address}", "-out", str(self.certificate)),
                *("-keyout", str(self.certificate.with_suffix(".key"))),
            )
        (self.folder / "tokens.csv").write_text(f'{self.token},admin,admin,"system:masters"\n')

    @staticmethod
    def _openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{program}.log").open("ab") as log:
            return subprocess.Popen(
                [str(self.binaries / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **LESS_WORK},
            )

    @staticmethod
    def _kill(process: subprocess.Popen[bytes] | None) -> None:
        if process is not None:
            process.kill()
            process.wait()

    def _wait(
        self,
        what: str,
        process: subprocess.Popen[bytes],
        ready: Callable[[], bool],
        seconds: float = READY_SECONDS,
    ) -> None:
        end = time.monotonic() + seconds
        while not ready():
            if process.poll() is not None or time.monotonic() > end:
                log = self.folder / f"{Path(str(process.args[0])).name}.log"  # type: ignore[index]
                raise TimeoutError(f"{what}; the end of its log:\n{log.read_text()[-3000:]}")
            time.sleep(0.1)

    def _etcd_ready(self) -> bool:
        try:
            return bool(self._ask_etcd("/v3/maintenance/status", {})["header"])
        except (urllib3.exceptions.HTTPError, OSError, ValueError, KeyError):
            return False

    def _api_ready(self) -> bool:
        try:
            headers = {"Authorization": f"Bearer {self.token}"}
            return self._http().request("GET", f"{self.url}/readyz", headers=headers).status == 200
        except (urllib3.exceptions.HTTPError, OSError):
            return False

    def _ask_etcd(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        url = f"http://{LOOPBACK}:{self._etcd_ports[0]}{path}"
        return self._http().request("POST", url, body=json.dumps(body)).json()

    def _ask_etcd_often(self, path: str, bodies: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Ask over one connection, by the standard library: a quarter of urllib3's work, which counts when emulated."""
        connection = http.client.HTTPConnection(LOOPBACK, self._etcd_ports[0], timeout=120)
        try:
            for body in bodies:
                connection.request("POST", path, json.dumps(body))
                yield json.loads(connection.getresponse().read())
        finally:
            connection.close()

    @staticmethod
    def _pod_key(manifest: Mapping[str, Any]) -> str:
        metadata = manifest["metadata"]
        return _base64(f"/registry/pods/{metadata['namespace']}/{metadata['name']}")

    def _http(self) -> urllib3.PoolManager:
        """Give the pool of connections."""
        if self._pool is None:
            self._pool = urllib3.PoolManager(maxsize=16, timeout=120.0, retries=False, ca_certs=str(self.certificate))
        return self._pool
