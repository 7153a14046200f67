# SPDX-License-Identifier: Apache-2.0
"""kmesh-daemon, the dual-engine launcher: arguments, logging, signals; builds the objects and runs the loop."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from typing import TextIO

import kmesh_bpf
from kmesh import streams, unexpected
from kmesh.cluster.key_file import KeyFile
from kmesh.cluster.source import ClusterSource
from kmesh.errors import OutputError
from kmesh.launcher.announcer import Announcer, AnnouncerThread
from kmesh.launcher.boot import BootGuard
from kmesh.launcher.config import MOUNTED_KEY, Config, parse
from kmesh.launcher.daemon import PERIOD, Daemon
from kmesh.launcher.uninstall import uninstall
from kmesh.telling import process
from kmesh.telling.health import HealthServer
from kmesh.telling.outbox import Outbox
from kmesh.telling.record import Bounds
from kmesh.telling.recorder import Recorder
from kmesh_bpf import ConfigError, KmeshBpfError, boot_guard, claim, privileges

EXIT_FAILED, EXIT_REFUSED = 1, 2
GC_THRESHOLDS = 50_000, 20, 20
"""A page of a list is a hundred thousand dicts that live for a moment: with Python's usual thresholds, looking for
cycles among them takes as long again as all else."""

log = logging.getLogger("kmesh")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, message."""

    def format(self, record: logging.LogRecord) -> str:
        """Render the record."""
        fields = {"time": self.formatTime(record), "level": record.levelname.lower(), "message": record.getMessage()}
        return json.dumps(fields)


def main(argv: Sequence[str], environment: dict[str, str], stderr: TextIO) -> int:
    """Run a command; give the exit status.

    Raises:
        OutputError: standard output cannot be written.

    """
    try:
        config = parse(argv, environment.get("NODE_NAME"), socket.gethostname())
        if config.command == "version":
            print(f"kmesh-daemon {kmesh_bpf.__version__}")
            return 0
        _set_up_logging(config, stderr)
        if config.ignored:
            log.warning("flags of Go Kmesh that have no meaning here are ignored: %s", ", ".join(config.ignored))
        return _run(config, environment)
    except ConfigError as error:
        print(f"kmesh-daemon: {unexpected.sentence(error)}", file=stderr)
        return EXIT_REFUSED
    except OutputError:
        raise  # of the streams, which kmesh.streams knows
    except Exception as error:  # noqa: BLE001 # no traceback is what a user sees
        print(f"kmesh-daemon: {unexpected.sentence(error)}", file=stderr)
        if not isinstance(error, KmeshBpfError):
            log.debug("%s", unexpected.origin(error))
        return EXIT_FAILED


def _set_up_logging(config: Config, stderr: TextIO) -> None:
    handler = logging.StreamHandler(stderr)
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s")
    handler.setFormatter(JsonFormatter() if config.log_format == "json" else text)
    root = logging.getLogger("kmesh")
    root.handlers[:] = [handler]
    root.setLevel(config.log_level.upper())
    root.propagate = False


def _source(config: Config, environment: Mapping[str, str], patience: float | None = None) -> ClusterSource:
    """Give the cluster that the flags or the surroundings name.

    ``patience``: see :class:`kmesh.cluster.kubernetes.source.KubernetesCluster`.

    Raises:
        ConfigError: they name none that can be used.

    """
    key_file = config.key_file
    if config.manifests is not None:
        from kmesh.cluster.manifests import FolderCluster  # noqa: PLC0415 # brings PyYAML, which a pod's account needs not

        source: ClusterSource = FolderCluster(config.manifests)
    else:
        from kmesh.cluster.kubernetes.connection import connect  # noqa: PLC0415 # slow, and a folder needs none of it
        from kmesh.cluster.kubernetes.source import EVERYTHING, KubernetesCluster  # noqa: PLC0415 # likewise

        if key_file is None and MOUNTED_KEY.exists():
            key_file = MOUNTED_KEY
        kinds = EVERYTHING - {"Secret"} if key_file else EVERYTHING
        connection = connect(config.kubeconfig, config.context, environment)
        log.info("cluster: %s", connection.server)
        source = KubernetesCluster(connection, kinds=kinds, patience=patience)
    if key_file is None:
        return source
    log.info("the key comes from %s", key_file)
    return KeyFile(source, key_file)


def _run(config: Config, environment: Mapping[str, str]) -> int:
    if config.command == "boot-guard":
        return _guard_boot(config)
    if config.command == "run" and not config.enable_ipsec:
        return _idle(config)
    privileges.need(*privileges.Capability)
    if config.command == "uninstall":
        return _uninstall(config, environment)
    # The loop itself waits, and looks after devices meanwhile.
    patience = None if config.dry_run else 0.0
    with closing(_source(config, environment, patience)) as source, closing(Outbox(source)) as outbox:
        bounds = Bounds(silence=3 * PERIOD, view_age=config.max_view_age)
        strict, all_peers = config.settings.strict, config.metrics_per_peer
        recorder = Recorder(config.node, source.age, outbox, bounds, strict=strict, all_peers=all_peers)
        if config.dry_run:
            return _dry_run(config, source, recorder)
        health = HealthServer(config.health, process.beside(recorder.answer)) if config.health else nullcontext()
        with health, claim(config.pin_root):
            return _encrypt(config, source, recorder)


def _uninstall(config: Config, environment: Mapping[str, str]) -> int:
    try:
        source = _source(config, environment)
    except ConfigError as error:
        # The kernel objects must go all the same.
        log.warning("the KmeshNodeInfo stays: %s", error)
        source = None
    kernel = kmesh_bpf.LinuxKernel(config.pin_root, config.settings, load=False)
    # A daemon that runs would put everything back. Where nothing is pinned there is nothing to claim.
    claimed = claim(config.pin_root) if config.pin_root.is_dir() else nullcontext()
    with closing(source) if source is not None else nullcontext(), claimed:
        left = (*uninstall(kernel, source, config.node, config.pin_root), *_forget_boot(config))
    for sentence in left:
        log.error("%s", sentence)
    return EXIT_FAILED if left else 0


def _forget_boot(config: Config) -> tuple[str, ...]:
    try:
        boot_guard.forget(config.state_dir)
        boot_guard.remove()
    except KmeshBpfError as error:
        return (str(error),)
    return ()


def _guard_boot(config: Config) -> int:
    privileges.need(privileges.Capability.NET_ADMIN)
    if boot_guard.install(config.state_dir):
        log.info("what is forwarded to or from managed pods of other nodes is dropped until the daemon's first pass")
    else:
        log.info("nothing is kept in %s: this node was not managed, or is permissive", config.state_dir)
    return 0


def _encrypt(config: Config, source: ClusterSource, recorder: Recorder) -> int:
    gc.set_threshold(*GC_THRESHOLDS)
    log.info("node %s: loading the programs below %s", config.node, config.pin_root)
    started = time.monotonic()
    kernel = kmesh_bpf.LinuxKernel(config.pin_root, config.settings, attach_mode=config.attach_mode)
    how = "compiled" if kernel.compiled else "found pinned, nothing compiled"
    log.info("programs %s (%.1f s)", how, time.monotonic() - started)
    for root in kernel.former_roots:
        log.info("took over what a daemon with --pin-root=%s had made here", root)
    boot = BootGuard(config.state_dir, strict=config.settings.strict, clock=time.monotonic)
    announcer = AnnouncerThread(source)
    daemon = Daemon(config, source, kernel, recorder, announcer, boot)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: daemon.stop())
    # A signal must end a select() that is under way: the interpreter retries it otherwise (PEP 475).
    wake_read, wake_write = socket.socketpair()
    wake_write.setblocking(False)
    signal.set_wakeup_fd(wake_write.fileno())
    # Nothing waits for it: it takes a moment, and where loading a module hangs, longer.
    threading.Thread(target=_look_around, name="look around", daemon=True).start()
    try:
        with closing(announcer):
            daemon.run(wake_read)
    finally:
        signal.set_wakeup_fd(-1)  # whoever asks a second time, while we end, must find no closed socket
    kernel.close()
    log.info("stopped; encryption stays in place (remove it with: kmesh-daemon uninstall)")
    return 0


def _look_around() -> None:
    """Tell of what passes do not find out: it is only advice."""
    try:
        for one in kmesh_bpf.look_around():
            log.warning("%s: %s%s", one.what, one.why, f"; {one.mend}" if one.mend else "")
    except KmeshBpfError as error:
        log.debug("%s", error)


def _dry_run(config: Config, source: ClusterSource, recorder: Recorder) -> int:
    kernel = kmesh_bpf.LinuxKernel(config.pin_root, config.settings, load=False)
    daemon = Daemon(config, source, kernel, recorder, Announcer(source, time.time))
    print("# KEY: each SA's own key, not shown. Programs and maps are pinned by the daemon's first start.")
    for operation in daemon.preview():
        print(kernel.render(operation))
    kernel.close()
    return 0


def _idle(config: Config) -> int:
    if config.dry_run:
        print(
            "# encryption is off: with --enable-ipsec=true this shows what would be done; now nothing would be loaded"
        )
        return 0
    waited_for = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)  # else their default action ends the process
    for sentence in _forget_boot(config):  # else what is not encrypted any more would be dropped after each boot
        log.warning("%s", sentence)
    log.info("encryption is off: start with --enable-ipsec=true to encrypt; nothing is loaded or changed")
    signal.sigwait(waited_for)
    return 0


def entry() -> None:
    """Entry point of the console script."""
    streams.keep_memory_private()
    logging.raiseExceptions = False  # a log that cannot be written is no reason for a traceback into it
    sys.exit(streams.run("kmesh-daemon", lambda _, errors: main(sys.argv[1:], dict(os.environ), errors)))
