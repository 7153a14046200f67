"""kmeshctl: the operator's tool. Keys go in and are never shown, unless --show-key asks for it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from kmesh.cluster import secret
from kmesh.cluster.manifests import FolderCluster
from kmesh.cluster.objects import ClusterObjects
from kmesh.cluster.source import ClusterSource
from kmesh_bpf import ConfigError, Key, KmeshBpfError, __version__

EXIT_FAILED, EXIT_REFUSED = 1, 2
KEY_BYTES = secret.KEY_DIGITS // 2
HIDDEN = "(hidden)"
EPILOG = """\
examples:
  kmeshctl secret --key=$(dd if=/dev/urandom count=36 bs=1 2>/dev/null | xxd -p -c 64)
  kmeshctl secret create --random          # the key never enters a command line
  kmeshctl secret create --key-file=-      # 72 digits on standard input
  kmeshctl secret get -o json
  kmeshctl secret delete

exit status: 0 done, 1 failed, 2 refused (nothing was written)
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    shared = _Parser(add_help=False)
    shared.add_argument(
        "--manifests",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="the cluster: a folder of Kubernetes manifests",
    )
    look: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": EPILOG}
    parser = _Parser(prog="kmeshctl", description="Manages Kmesh's IPsec key.", parents=[shared], **look)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    commands.add_parser("version", help="print the version", parents=[shared])
    one = commands.add_parser("secret", help="create, replace, show or delete the key", parents=[shared], **look)
    one.add_argument(
        "--key", metavar="HEX", help=f"{secret.KEY_DIGITS} hexadecimal digits: creates or replaces the key"
    )
    actions = one.add_subparsers(dest="action", parser_class=_Parser)
    create = actions.add_parser("create", help="create or replace the key", parents=[shared])
    origin = create.add_mutually_exclusive_group()
    # SUPPRESS: a default here would undo `secret --key=… create`.
    origin.add_argument("--key", metavar="HEX", default=argparse.SUPPRESS, help="the key (shows in the process list)")
    origin.add_argument("--key-file", metavar="FILE", help="a file with the digits; - is standard input")
    origin.add_argument("--random", action="store_true", help="make one (default)")
    get = actions.add_parser("get", help="show the key's version and algorithm", parents=[shared])
    get.add_argument("--show-key", action="store_true", help="show the key itself, too")
    get.add_argument("-o", "--output", choices=("table", "json"), default="table")
    actions.add_parser("delete", help="delete the key: nodes keep using what they hold", parents=[shared])
    return parser


def main(argv: Sequence[str], stdin: TextIO, stdout: TextIO, stderr: TextIO) -> int:
    """Run a command; give the exit status."""
    try:
        flags = _parser().parse_args(argv)
        if flags.command == "version":
            print(f"kmeshctl {__version__}", file=stdout)
            return 0
        folder = getattr(flags, "manifests", None)
        if folder is None:
            raise ConfigError("kmeshctl needs a cluster: give --manifests DIR")
        return _secret(flags, FolderCluster(folder), stdin, stdout)
    except ConfigError as error:
        print(f"kmeshctl: {error}", file=stderr)
        return EXIT_REFUSED
    except KmeshBpfError as error:
        print(f"kmeshctl: {error}", file=stderr)
        return EXIT_FAILED


def _secret(flags: argparse.Namespace, source: ClusterSource, stdin: TextIO, stdout: TextIO) -> int:
    match flags.action:
        case "get":
            return _get(flags, source, stdout)
        case "delete":
            source.change_secret(lambda *_: None)
            print("key deleted; nodes keep using what they hold, the next key gets a higher SPI", file=stdout)
            return 0
        case None if flags.key is None:
            raise ConfigError("say what to do: secret --key=HEX, or secret create, get, delete")
        case _:
            return _replace(source, _new_key(flags, stdin), stdout)


def _new_key(flags: argparse.Namespace, stdin: TextIO) -> Key:
    if flags.key is not None:
        return secret.parse_key_text(flags.key)
    if flags.key_file is not None:
        try:
            text = stdin.read() if flags.key_file == "-" else Path(flags.key_file).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read {flags.key_file}: {error}") from error
        return secret.parse_key_text(text)
    return Key(os.urandom(KEY_BYTES))


def _replace(source: ClusterSource, key: Key, stdout: TextIO) -> int:
    version = 0

    def change(before: Mapping[str, Any] | None, objects: ClusterObjects) -> Mapping[str, Any]:
        nonlocal version
        held = secret.parse_keys(before) if before is not None else None
        new = secret.next_keys(held, (info.spi for info in objects.node_infos), key)
        version = new.current
        return secret.render(new)

    source.change_secret(change)
    print(f"key stored: SPI {version}, {secret.ALGORITHM}", file=stdout)
    return 0


def _get(flags: argparse.Namespace, source: ClusterSource, stdout: TextIO) -> int:
    found = source.read().secret
    if found is None:
        raise ConfigError("the cluster holds no key; make one: kmeshctl secret create")
    keyring = secret.parse_keys(found)
    rows = [
        {
            "spi": version,
            "algorithm": secret.ALGORITHM,
            "icvBits": secret.ICV_BITS,
            "inForce": version == keyring.current,
            "key": keyring.keys[version].reveal().hex() if flags.show_key else HIDDEN,
        }
        for version in sorted(keyring.keys, reverse=True)
    ]
    if flags.output == "json":
        print(json.dumps(rows, indent=2), file=stdout)
        return 0
    print(f"{'SPI':<6}{'ALGORITHM':<20}{'ICV':<6}{'IN FORCE':<10}KEY", file=stdout)
    for row in rows:
        force = "yes" if row["inForce"] else "no"
        print(f"{row['spi']:<6}{row['algorithm']:<20}{row['icvBits']:<6}{force:<10}{row['key']}", file=stdout)
    return 0


def entry() -> None:
    """Entry point of the console script."""
    sys.exit(main(sys.argv[1:], sys.stdin, sys.stdout, sys.stderr))
