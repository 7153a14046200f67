"""The program nft: runs, and its complaints as errors of ours."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Sequence

from kmesh_bpf.errors import KernelError, UnsupportedError

TIMEOUT = 60
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
        done = subprocess.run(
            ["nft", *arguments],
            input=script,
            capture_output=True,
            text=True,
            errors="replace",  # rules of others may have comments in any encoding
            check=False,
            timeout=TIMEOUT,
        )
    except FileNotFoundError as error:
        raise UnsupportedError("nft", "install Debian's nftables: masquerade rules would undo encryption") from error
    except OSError as error:  # it may not be run, is no program; no more processes, descriptors or memory
        remedy = f"it cannot be started ({error.strerror}): masquerade rules would undo encryption"
        raise UnsupportedError("nft", remedy) from error
    except subprocess.TimeoutExpired as error:
        raise KernelError(operation, target, errno.ETIMEDOUT, f"nft took more than {TIMEOUT} s") from error
    if done.returncode:
        message = next((line for line in done.stderr.splitlines() if "rror" in line), done.stderr.strip())
        # nft gives the kernel's errno as text only, at the end of the line.
        number = ERRNO_BY_TEXT.get(message.rpartition(": ")[2].strip(), errno.EIO)
        raise KernelError(operation, target, number, message)
    return done.stdout
