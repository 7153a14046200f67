# SPDX-License-Identifier: Apache-2.0
"""Which policies there should be: what is encrypted towards a peer, and what is taken from it.

Selectors are exact addresses of managed pods and of nodes; a peer's pod CIDRs only where there are too many addresses.
Templates carry no SPI: the kernel takes the newest SA, so that a key replacement touches no policy.
The whole of it: docs/design.md, "Policies".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from kmesh_bpf.core.marks import UNMARKED, to_encrypt, was_decrypted
from kmesh_bpf.core.options import Options
from kmesh_bpf.core.state import Direction, Mark, Policy
from kmesh_bpf.core.tunnels import Ends
from kmesh_bpf.core.view import Address, Network, Peer, View

ANY: Mapping[int, Network] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}
LOOPBACK = IPv4Address("127.0.0.1")
INBOUND = (Direction.FWD, Direction.IN)


@dataclass(frozen=True, slots=True)
class Way:
    """A peer, and the tunnel that leads there, by the family of the packets within.

    ``sends``: we can send to it, it is ready. Where we cannot, it may be able to send to us all the same, and what it
    sends is taken: a node that is slow to learn of another one, or of a key, is no reason to lose its packets.
    """

    peer: Peer
    ends: Mapping[int, Ends]
    sends: bool


def policies_of(
    view: View, pods: Iterable[Address], way: Way | None, options: Options, *, by_cidr: bool = False
) -> Iterator[Policy]:
    """Give the policies towards and from one other node.

    ``pods``: addresses of its managed pods; ``way``: None where nothing is taken from it, nor can it be sent to;
    ``by_cidr``: its pods are selected by pod CIDR. Its own addresses are neither a pod's nor this node's
    (:mod:`kmesh_bpf.core.claims`).
    """
    encrypt, decrypted = to_encrypt(options.mark_mask), was_decrypted(options.mark_mask)
    sends = way is not None and way.sends
    if way is not None:
        for theirs in way.peer.node.pod_cidrs if by_cidr else map(host, pods):
            yield from _both_ways(theirs, way, encrypt, decrypted)
            if sends and way.peer.node_traffic:
                yield from _from_this_node(view, theirs, way.ends[theirs.version])
        for address in way.peer.node.addresses if way.peer.node_traffic else ():
            if address not in way.peer.unconfirmed:
                yield from _both_ways(host(address), way, encrypt, decrypted)
    if options.strict and not sends:
        yield from blocks(view, pods, options)


def blocks(view: View, addresses: Iterable[Address], options: Options) -> Iterator[Policy]:
    """Give the policies that drop what is to be encrypted and cannot be, to some addresses."""
    tag, encrypt = (*view.node.addresses, LOOPBACK)[0], to_encrypt(options.mark_mask)
    for address in addresses:
        yield Policy(Direction.OUT, ANY[address.version], host(address), encrypt, tag, tag, block=True)


def _both_ways(theirs: Network, way: Way, encrypt: Mark, decrypted: Mark) -> Iterator[Policy]:
    """Encrypt what goes to their addresses, if we can, and take what was decrypted and comes from them."""
    (here, there), anybody = way.ends[theirs.version], ANY[theirs.version]
    if way.sends:
        yield Policy(Direction.OUT, anybody, theirs, encrypt, here, there)
    for direction in INBOUND:
        yield Policy(direction, theirs, anybody, decrypted, there, here)


def _from_this_node(view: View, theirs: Network, ends: Ends) -> Iterator[Policy]:
    """Encrypt what this node itself sends to their pods (ICMP errors, masqueraded flows), as what comes back is."""
    for address in view.node.addresses:
        if address.version == theirs.version:
            yield Policy(Direction.OUT, host(address), theirs, UNMARKED, *ends)


@lru_cache(maxsize=1 << 18)
def host(address: Address) -> Network:
    """Give the network that is this address alone. Kept, for there are tens of thousands, the same in each pass."""
    if isinstance(address, IPv4Address):
        return IPv4Network((int(address), 32))
    return IPv6Network((int(address), 128))
