"""Which policies there should be: what is encrypted towards a peer, and what is taken from it (DESIGN section 4).

Selectors are exact addresses of managed pods and of nodes; a peer's pod CIDRs only where there are too many addresses.
Templates carry no SPI: the kernel takes the newest SA, so that a key replacement touches no policy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from kmesh_bpf import contract
from kmesh_bpf.core import marks
from kmesh_bpf.core.options import Options
from kmesh_bpf.core.state import Direction, Mark, Policy, PolicyId
from kmesh_bpf.core.tunnels import Ends
from kmesh_bpf.core.view import Address, Network, Peer, View

ANY: Mapping[int, Network] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}
UNMARKED = Mark(0, 0)
"""Matches every packet."""
ASKS_ENCRYPTION = contract.MARK_AGAIN & ~contract.MARK_DECRYPTED
TELLS_DECRYPTION = contract.MARK_AGAIN & ~contract.MARK_ENCRYPT
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


def to_encrypt(mask: int) -> Mark:
    """Give the mark that selects what is to be encrypted, decrypted before or not. ``mask``: bits that are ours."""
    return Mark(marks.encrypt_mark(mask), mask & ~TELLS_DECRYPTION)


def was_decrypted(mask: int) -> Mark:
    """Give the mark that selects what was decrypted, to be encrypted again or not."""
    return Mark(marks.decrypted_mark(mask), mask & ~ASKS_ENCRYPTION)


def plan_policies(
    view: View,
    owner: Mapping[Address, str],
    ways: Mapping[str, Way],
    by_cidr: Collection[str],
    options: Options,
) -> dict[PolicyId, Policy]:
    """Give all policies.

    ``owner``: the node of each managed pod's address. ``ways``: of peers that send to us or that we can send to, by
    name; ``by_cidr``: names of those selected by pod CIDR, all of them ready.
    Addresses of the peers among these are neither a pod's nor this node's (:mod:`kmesh_bpf.core.claims`).
    """
    encrypt, decrypted = to_encrypt(options.mark_mask), was_decrypted(options.mark_mask)
    remote = [(address, node) for address, node in owner.items() if node != view.node.name]
    found: list[Policy] = []
    for pods, way in _pods_of_peers(remote, ways, by_cidr):
        found.extend(_both_ways(pods, way, encrypt, decrypted))
        if way.sends and way.peer.node_traffic:
            found.extend(_from_this_node(view, pods, way.ends[pods.version]))
    for address, way in _node_addresses(ways):
        found.extend(_both_ways(host(address), way, encrypt, decrypted))
    if options.strict:
        ready = frozenset(name for name, way in ways.items() if way.sends)
        tag = (*view.node.addresses, LOOPBACK)[0]
        found.extend(
            Policy(Direction.OUT, ANY[address.version], host(address), encrypt, tag, tag, block=True)
            for address, node in remote
            if node not in ready
        )
    return {policy.id: policy for policy in found}


def _pods_of_peers(
    remote: list[tuple[Address, str]], ways: Mapping[str, Way], by_cidr: Collection[str]
) -> Iterator[tuple[Network, Way]]:
    for name in sorted(by_cidr):
        for cidr in ways[name].peer.node.pod_cidrs:
            yield cidr, ways[name]
    for address, node in remote:
        if node in ways and node not in by_cidr:
            yield host(address), ways[node]


def _node_addresses(ways: Mapping[str, Way]) -> Iterator[tuple[Address, Way]]:
    for way in ways.values():
        if way.peer.node_traffic:
            for address in way.peer.node.addresses:
                if address not in way.peer.unconfirmed:
                    yield address, way


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
