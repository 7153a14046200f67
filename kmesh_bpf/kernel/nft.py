# SPDX-License-Identifier: Apache-2.0
"""The program nft, and others that read rules: runs that end, and their complaints as errors of ours."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress

from kmesh_bpf.errors import KernelError, UnsupportedError

TIMEOUT = 10
"""Seconds: a listing of our tables takes some hundredths beside 10,000 rules of others, and ten times that under
emulation. Packets wait for no pass, but new pods do."""
PAUSE = 60.0
"""Seconds for which a program that hung is left alone, so that the passes after that one lose no time."""
GRACE = 1.0
"""Seconds that the kernel gets to end a program. One that hangs in there is not waited for."""
UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.ENOENT})
"""What a kernel without nf_tables, its NAT chains or its route expression answers.

ENOENT among them: our transactions make the tables themselves, so what can be missing is a module only.
"""
ERRNO_BY_TEXT = {os.strerror(number): number for number in errno.errorcode}


def run(operation: str, target: str, arguments: Sequence[str], script: str = "") -> str:
    """Run it, with a script on its standard input; give what it prints.

    Raises:
        UnsupportedError: there is no nft (the cause is a FileNotFoundError), or it cannot be started, now or ever.
        KernelError: it took too long, or the kernel refused.

    """
    try:
        done = finish(["nft", *arguments], script)
    except FileNotFoundError as error:
        raise UnsupportedError("nft", "install Debian's nftables: masquerade rules would undo encryption") from error
    except OSError as error:  # it may not be run, is no program; no more processes, descriptors or memory
        remedy = f"it cannot be started ({error.strerror}): masquerade rules would undo encryption"
        raise UnsupportedError("nft", remedy) from error
    except subprocess.TimeoutExpired as error:
        raise hung(operation, target) from error
    if done.returncode:
        message = next((line for line in done.stderr.splitlines() if "rror" in line), done.stderr.strip())
        # nft gives the kernel's errno as text only, at the end of the line.
        number = ERRNO_BY_TEXT.get(message.rpartition(": ")[2].strip(), errno.EIO)
        raise KernelError(operation, target, number, message)
    return done.stdout


def hung(operation: str, target: str) -> KernelError:
    """Give the error of an nft that took too long: always the same, so that it is told once."""
    return KernelError(operation, target, errno.ETIMEDOUT, f"nft took more than {TIMEOUT} s and was ended")


def finish(command: Sequence[str], script: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program to its end; unlike subprocess.run also where the kernel does not end it.

    Raises:
        OSError: it cannot be started.
        subprocess.TimeoutExpired: it took longer than TIMEOUT, and was ended.

    """
    pipe = subprocess.PIPE
    # Rules of others may have comments in any encoding.
    child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, errors="replace")
    try:
        printed, said = child.communicate(script, TIMEOUT)
    except BaseException:
        child.kill()
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)
        raise
    return subprocess.CompletedProcess(command, child.returncode, printed, said)
