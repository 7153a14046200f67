# SPDX-License-Identifier: Apache-2.0
"""Writes ``kmesh_bpf/_abi.pyi``: what the compiled extension has, by name, for mypy. Run by scripts/setup.

A struct becomes a class with its members, and what ``ffi`` makes of the struct's name is of that class. So a constant,
function, struct or member that is misspelt, or gone, is found before it is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from keyword import iskeyword
from pathlib import Path
from typing import Any

from kmesh_bpf._abi import ffi, lib

FILE = Path(__file__).with_name("_abi.pyi")
HEAD = """# Written by kmesh_bpf/_stubs.py from the compiled extension.
from typing import Any, Literal, overload

class _Lib:
"""
FFI = """
    @overload
    def new(self, cdecl: str, init: object = ...) -> Any: ...
"""
TAIL = """
    @overload
    def from_buffer(self, cdecl: str, python_buffer: object, require_writable: bool = ...) -> Any: ...
    @overload
    def from_buffer(self, cdecl: bytes | bytearray | memoryview) -> Any: ...
    NULL: Any
    def buffer(self, cdata: object, size: int = ...) -> memoryview: ...
    def sizeof(self, cdecl: object) -> int: ...
    def offsetof(self, cdecl: object, *fields: str) -> int: ...
    def typeof(self, cdecl: object) -> Any: ...
    def getctype(self, cdecl: object, replace_with: str = ...) -> str: ...
    def string(self, cdata: object, maxlen: int = ...) -> bytes: ...
    def addressof(self, cdata: object, *fields: str) -> Any: ...
    def list_types(self) -> tuple[list[str], list[str], list[str]]: ...
    def memmove(self, dest: object, src: object, n: int) -> None: ...

lib: _Lib
ffi: _Ffi
"""


def stubs() -> str:
    """Give the text of the file."""
    typedefs, structs, _ = ffi.list_types()
    structs = [f"struct {name}" for name in structs]
    unions = [name for name in typedefs if ffi.typeof(name).kind == "union"]
    lines = [HEAD.rstrip("\n"), *map(_member_of_lib, dir(lib))]
    for name in (*unions, *structs):
        lines += ["", f"class {_class(name)}:", *_fields(name)]
    lines += ["", "class _Ffi:"]
    for method, rest in (
        ("new", "init: object = ..."),
        ("from_buffer", "python_buffer: object, require_writable: bool = ..."),
    ):
        for name in structs:
            lines.append("    @overload")
            lines.append(f'    def {method}(self, cdecl: Literal["{name} *"], {rest}) -> {_class(name)}: ...')
        if method == "new":
            lines.append(FFI.strip("\n"))
    return "\n".join(lines) + "\n" + TAIL.lstrip("\n")


def _class(name: str) -> str:
    return name.removeprefix("struct ")


def _member_of_lib(name: str) -> str:
    if isinstance(getattr(lib, name), int):
        return f"    {name}: int"
    function = ffi.typeof(getattr(lib, name))
    arguments = ", ".join(f"_{number}: {_python(one)}" for number, one in enumerate(function.args))
    return f"    def {name}(self, {arguments}) -> {_python(function.result)}: ..."


def _fields(name: str) -> Iterator[str]:
    for member, field in ffi.typeof(name).fields:
        if not iskeyword(member):  # XFRM has an "in", which Python reads by getattr
            yield f"    {member}: {_python(field.type)}"


def _python(kind: Any) -> str:
    """Give what cffi makes of a C type: a number, a struct's class, or what is written and read in too many ways."""
    if kind.kind in ("primitive", "enum"):
        return "int"
    return _class(kind.cname) if kind.kind in ("struct", "union") else "Any"


if __name__ == "__main__":
    FILE.write_text(stubs())
