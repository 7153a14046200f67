# SPDX-License-Identifier: Apache-2.0
"""The kernel objects of ours, as values: what a plan calls for and what an observation found are the same types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntFlag
from types import MappingProxyType

from kmesh_bpf import contract
from kmesh_bpf.core.view import Address, Key, Network

ICV_BITS = 128
"""Length of the integrity check value (RFC 4106 section 6 allows 64, 96, 128)."""


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """An skb mark with the bits that count (struct xfrm_mark)."""

    value: int
    mask: int

    def __str__(self) -> str:
        return f"{self.value:#x}/{self.mask:#x}"


@dataclass(frozen=True, slots=True)
class SaId:
    """What the SAD tells SAs apart by, for ESP: *not* by source; that is in here for readers only."""

    src: Address = field(compare=False)
    dst: Address
    spi: int
    mark: Mark | None
    hash: int = field(init=False, repr=False, compare=False)
    """Kept: identities are looked up all the time, and addresses are hashed by way of a text (:mod:`ipaddress`)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "hash", hash((self.dst, self.spi, self.mark)))

    def __hash__(self) -> int:
        return self.hash


@dataclass(frozen=True, slots=True)
class Sa:
    """An XFRM state: ESP, tunnel mode, rfc4106(gcm(aes)), reqid ours.

    ``replay_window`` in packets; 0 means none, and no extended sequence numbers either.
    ``mark`` selects an inbound SA; ``output_mark`` is laid on what it decrypts.
    ``any_family``: the inner packets may be of the other address family (XFRM_STATE_AF_UNSPEC).
    """

    src: Address
    dst: Address
    spi: int
    key: Key
    mark: Mark | None = None
    output_mark: Mark | None = None
    replay_window: int = 0
    any_family: bool = False
    id: SaId = field(init=False, repr=False, compare=False)
    """Identity in the SAD."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", SaId(self.src, self.dst, self.spi, self.mark))


@dataclass(frozen=True, slots=True)
class SaUsage:
    """What the kernel counts for an SA. Times are seconds since the epoch; ``last_used`` is 0 when never used."""

    added: int
    last_used: int
    packets: int
    bytes: int
    sequence: int = 0
    replays: int = 0
    integrity_failures: int = 0


class Direction(Enum):
    """Direction of a policy; the values are `ip xfrm`'s words."""

    IN = "in"
    OUT = "out"
    FWD = "fwd"


@dataclass(frozen=True, slots=True)
class PolicyId:
    """What the SPD tells policies apart by."""

    direction: Direction
    src: Network
    dst: Network
    mark: Mark
    hash: int = field(init=False, repr=False, compare=False)
    """Kept, as :attr:`SaId.hash` is."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "hash", hash((self.direction, self.src, self.dst, self.mark)))

    def __hash__(self) -> int:
        return self.hash


@dataclass(frozen=True, slots=True)
class Policy:
    """An XFRM policy with one template: ESP, tunnel mode, reqid ours, required.

    ``spi`` pins the template to one SA, as former versions did; 0 leaves it open: the kernel takes the newest SA.
    ``block``: what it selects is dropped (XFRM_POLICY_BLOCK); the template then only says whose policy it is.
    """

    direction: Direction
    src: Network
    dst: Network
    mark: Mark
    tunnel_src: Address
    tunnel_dst: Address
    spi: int = 0
    priority: int = contract.POLICY_PRIORITY
    block: bool = False
    id: PolicyId = field(init=False, repr=False, compare=False)
    """Identity in the SPD."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", PolicyId(self.direction, self.src, self.dst, self.mark))


class PodFlags(IntFlag):
    """kmesh_pod.flags of the contract header."""

    LOCAL = contract.POD_LOCAL
    REMOTE = contract.POD_REMOTE
    READY = contract.POD_READY
    CANDIDATE = contract.POD_CANDIDATE
    PEER = contract.POD_PEER
    OWN = contract.POD_OWN


@dataclass(frozen=True, slots=True)
class PeerEntry:
    """Value of the peer maps (struct kmesh_peer of the contract header).

    ``spi``: the highest key version of which an outbound SA was made, or is being made
    (:func:`kmesh_bpf.core.reach.in_order`). ``retired``: the highest key version of which the inbound SA was retired;
    neither it nor an older one comes back.
    ``incarnations``: by :func:`marks.incarnations`; ``pair``: by :func:`keys.pair`, or as an earlier contract version
    has left it (:mod:`kmesh_bpf.core.formers`).
    """

    node_id: int
    node_mark: int
    spi: int
    incarnations: int
    retired: int = 0
    pair: int = 0


class Program(Enum):
    """The programs on TC; the values are their names in the kernel and in the pin folder."""

    MARK_ENCRYPT = "tc_mark_encrypt"
    MARK_DECRYPT = "tc_mark_decrypt"
    LEAK_GUARD = "tc_leak_guard"
    INNER_GUARD = "tc_inner_guard"
    POD_GUARD = "tc_pod_guard"

    @property
    def egress(self) -> bool:
        """Whether it sits on a device's egress; the others sit on ingress."""
        return self in (Program.LEAK_GUARD, Program.INNER_GUARD, Program.POD_GUARD)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A program on a device. ``device``, its name, is for readers: the kernel goes by ``ifindex``.

    ``current`` is false for one that was found attached but comes from other sources or settings than those wanted.
    """

    ifindex: int
    device: str = field(compare=False)
    program: Program
    current: bool = True


@dataclass(frozen=True, slots=True)
class KernelState:
    """All kernel objects of ours on one node, desired or observed.

    ``sources``: the device (ifindex) that a managed pod's packets come from, by the pod's address; ``pod_devices``:
    those devices that must carry no other source. ``formers``: tunnels (PeerEntry.pair) whose keys
    were in use and whose SAs are gone -> the highest key version used. ``nat_exemption``: the nft tables that keep
    address masquerading away from packets on their way to encryption. ``policy_hash``: policies of whole addresses are
    found by hash (hthresh 0/32, 0/128).
    """

    sas: Mapping[SaId, Sa] = field(default_factory=lambda: MappingProxyType({}))
    policies: Mapping[PolicyId, Policy] = field(default_factory=lambda: MappingProxyType({}))
    pods: Mapping[Address, PodFlags] = field(default_factory=lambda: MappingProxyType({}))
    peers: Mapping[Address, PeerEntry] = field(default_factory=lambda: MappingProxyType({}))
    services: frozenset[Network] = frozenset()
    attachments: frozenset[Attachment] = frozenset()
    nat_exemption: bool = False
    sources: Mapping[Address, int] = field(default_factory=lambda: MappingProxyType({}))
    pod_devices: frozenset[int] = frozenset()
    formers: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    policy_hash: bool = False


def managed_pods(state: KernelState) -> frozenset[Address]:
    """Give the addresses of managed pods, this node's and others'."""
    managed = PodFlags.LOCAL | PodFlags.REMOTE
    return frozenset(address for address, flags in state.pods.items() if flags & managed)


def own_addresses(state: KernelState) -> frozenset[Address]:
    """Give this node's own addresses."""
    return frozenset(address for address, flags in state.pods.items() if flags & PodFlags.OWN)


def remote_pods(state: KernelState) -> frozenset[Address]:
    """Give the addresses of the managed pods of other nodes."""
    return frozenset(address for address, flags in state.pods.items() if flags & PodFlags.REMOTE)


@dataclass(frozen=True, slots=True)
class Link:
    """A network device of the node's namespace.

    ``peer_elsewhere``: for a veth or netkit, whether its other end lives in another network namespace
    (IFLA_LINK_NETNSID). ``kind`` is IFLA_INFO_KIND, empty for hardware. ``master``: ifindex of the bridge, bond or VRF
    that it is a port of, 0: none. ``far_addresses``: addresses of global scope of the other end, None: they could not
    be asked. ``leads_out``: a route by it has a gateway, or is wider than one host (link-local and multicast aside).
    ``xfrm_disabled``: it leads out, and the sysctl disable_xfrm takes it away from XFRM (IPv4); ``unchecked``: it leads
    out, and disable_policy lets all in that comes by it. ``lower``: ifindex of the device below it in this namespace
    (of a vlan, a macvlan), 0: none. ``fresh``: it has come lately, and its other end may yet get its address.
    ``xdp``: an XDP program of somebody runs on it, ahead of all others.
    """

    ifindex: int
    name: str
    kind: str
    peer_elsewhere: bool
    addresses: tuple[Address, ...]
    master: int = 0
    far_addresses: tuple[Address, ...] | None = None
    leads_out: bool = False
    xfrm_disabled: bool = False
    unchecked: bool = False
    lower: int = 0
    fresh: bool = False
    xdp: bool = False


@dataclass(frozen=True, slots=True)
class Suspect:
    """A rule of somebody else that may be in our way: where it is, what it says, the IP versions that it looks at.

    ``lost``: the bits of our marks that it changes; 0 for a reverse path filter. ``devices``: names of the devices that
    packets come by which it looks at, ``*`` at the end for any ending; none: all devices. ``way_out``: what to do,
    where it is in our way whatever the node is like.
    """

    where: str
    words: str
    versions: frozenset[int]
    lost: int = 0
    devices: tuple[str, ...] = ()
    way_out: str = ""


@dataclass(frozen=True, slots=True)
class Detour:
    """What somebody else does with packets behind our programs, or past XFRM: where that is, and what it says.

    ``device``: the name of the one whose packets it takes, empty for routes and rules of routing; ``to``: that of the
    one it leads to, empty: to none. ``lost``: the bits of marks that it changes or goes by, where that is all.
    ``destination``: of a route that wraps packets. ``undo``: the command that takes it off.
    """

    where: str
    words: str
    undo: str
    device: str = ""
    to: str = ""
    lost: int = 0
    destination: Network | None = None


@dataclass(frozen=True, slots=True)
class Rival:
    """An XFRM policy of somebody else that comes before ours, or may: the smaller priority does."""

    direction: Direction
    src: Network
    dst: Network
    mark: Mark
    priority: int


@dataclass(frozen=True, slots=True)
class Observation:
    """What was found in the kernel: our objects, how our SAs are used, the links, and what must be remembered.

    ``incarnation`` is the text kept in the pinned identity map, None where there is none yet. ``can_hash``: the kernel
    has policy hash thresholds (NEWSPDINFO, Linux 3.18), so that KernelState.policy_hash can be asked for.
    ``suspects``: rules of others that may be in our way; ``rivals``: policies of others that come before ours;
    ``refusing``: directions in which XFRM drops what no policy selects; ``detours``: what others do with packets
    behind our programs.
    """

    state: KernelState
    usage: Mapping[SaId, SaUsage] = field(default_factory=lambda: MappingProxyType({}))
    links: tuple[Link, ...] = ()
    incarnation: str | None = None
    suspects: tuple[Suspect, ...] = ()
    can_hash: bool = True
    rivals: tuple[Rival, ...] = ()
    refusing: frozenset[Direction] = frozenset()
    detours: tuple[Detour, ...] = ()
