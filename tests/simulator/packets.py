# SPDX-License-Identifier: Apache-2.0
"""What travels in the simulated cluster, and what becomes of it, as values."""

from __future__ import annotations

from dataclasses import dataclass

from kmesh_bpf.core.view import Address, Key


@dataclass(frozen=True, slots=True)
class Inner:
    """A packet as whoever sends it makes it, or as it is delivered; ``ident`` stays whatever NAT makes of the rest."""

    src: Address
    dst: Address
    ident: int


@dataclass(frozen=True, slots=True)
class Frame:
    """What is on the wire.

    ``spi`` None: in clear, and then ``src`` and ``dst`` are those of ``inner``, which is as NAT has left it.
    ESP: ``src``, ``dst`` are those of the outer header, ``key`` that by which alone it can be taken apart, ``sequence``
    the whole number, of which the wire carries 32 bits; ``esn``: the others are authenticated too.
    """

    src: Address
    dst: Address
    inner: Inner
    spi: int | None = None
    key: Key | None = None
    sequence: int = 0
    esn: bool = False


@dataclass(frozen=True, slots=True)
class Fate:
    """What a node has made of a packet: it has left as ``frame``, or was ``delivered`` on the node, or neither.

    ``counter`` is the one that the program raised which dropped it, ``xfrm_error`` the kernel's name of why XFRM did;
    ``why`` says in words what became of it.
    """

    frame: Frame | None = None
    delivered: Inner | None = None
    counter: str = ""
    xfrm_error: str = ""
    why: str = ""
