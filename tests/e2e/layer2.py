# SPDX-License-Identifier: Apache-2.0
"""Node n3 as a layer 2 CNI builds it: a device that leads out is a port of the bridge that its pods are on."""

from contextlib import contextmanager

from tests.lab.network import run

FORGET = "for one in p3a p3b n3; do ip -n $one neigh flush all; done"
"""A bridge has the lowest of its ports' hardware addresses: with eth0 another one than before."""
VNI = 7


@contextmanager
def flat(lab):
    """Have its uplink as a port, and its addresses on the bridge."""
    v4, v6 = lab.network.nodes[2].addresses
    move = "ip -n n3 addr flush dev {0}; ip -n n3 addr add {1}/24 dev {2}; ip -n n3 addr add {3}/64 dev {2} nodad"
    run(f"{move.format('eth0', v4, 'cni0', v6)}; ip -n n3 link set eth0 master cni0")
    # Else it tells the pods to go to the other nodes themselves, past it.
    run("nsenter --net=/run/netns/n3 sysctl -qw net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.cni0.send_redirects=0")
    lab.network.route_between_nodes()
    run(FORGET)
    try:
        yield
    finally:
        run(f"ip -n n3 link set eth0 nomaster; {move.format('cni0', v4, 'eth0', v6)}")
        run("ip -n n3 -b -", "addr replace 169.254.1.1/32 dev cni0\naddr replace fe80::1/64 dev cni0 nodad")
        addresses = (lab.pod(name).address(version) for name in ("p3a", "p3b") for version in (4, 6))
        run("ip -n n3 -b -", "\n".join(f"route replace {address} dev cni0" for address in addresses))
        lab.network.route_between_nodes()
        run(FORGET)


@contextmanager
def overlay(lab):
    """Have a vxlan as a port, as where one subnet spans all nodes."""
    here = lab.network.nodes[2].addresses[0]
    run(
        f"ip -n n3 link add vx0 type vxlan id {VNI} dstport 4789 local {here};"
        "ip -n n3 link set vx0 master cni0; ip -n n3 link set vx0 up"
    )
    try:
        yield
    finally:
        run(f"ip -n n3 link del vx0; {FORGET}")
