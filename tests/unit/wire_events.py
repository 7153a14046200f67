# SPDX-License-Identifier: Apache-2.0
"""What may happen to the world of :mod:`tests.unit.wire`, by name: to its nodes, its cluster and its key."""

from dataclasses import replace
from ipaddress import ip_address

from kmesh.cluster import secret

from kmesh_bpf.core import keys, marks
from tests.unit.core import mesh
from tests.unit.wire import OTHER, OURS, WINDOW, material

EVENTS = {}


def event(function):
    EVENTS[function.__name__] = function
    return function


def ours(function):
    for number in range(len(OURS)):
        EVENTS[f"{function.__name__}{OURS[number]}"] = lambda world, n=number: function(world, world.hosts[n])
    return function


@event
def nothing(world):
    pass


@ours
def states_are_flushed(world, host):
    host.kernel.flush_sas()


def delete_states(host, inbound, newest):
    found = [identity for identity in host.kernel.sas if (identity.mark is not None) is inbound]
    spi = (max if newest else min)((identity.spi for identity in found), default=0)
    for identity in found:
        if identity.spi == spi:
            host.kernel.delete_sa(identity)


@ours
def newest_inbound_states_are_deleted(world, host):
    delete_states(host, inbound=True, newest=True)


@ours
def oldest_inbound_states_are_deleted(world, host):
    delete_states(host, inbound=True, newest=False)


@ours
def outbound_states_are_deleted(world, host):
    delete_states(host, inbound=False, newest=True)


@ours
def entry_is_deleted(world, host):
    for address in sorted(host.kernel.peers, key=repr)[:1]:
        del host.kernel.peers[address]


@ours
def entries_come_from_contract_version_1(world, host):
    for address, entry in host.kernel.peers.items():
        host.kernel.peers[address] = replace(entry, pair=marks.UNKNOWN_PAIR)
    host.start()


@ours
def entries_come_from_contract_version_2(world, host):
    """Of entries for who is announced now; what was made for somebody before stays as it is."""
    here = replace(mesh.node(host.index), boot_id=host.kernel.remembered or "")
    local = ip_address(world.address(host.index))
    for address, entry in host.kernel.peers.items():
        for boot in (one["spec"]["bootID"] for one in world.infos.values()):
            if entry.pair == keys.pair(local, address, here.boot_id, boot):
                pair = marks.second_pair(here, replace(here, boot_id=boot))
                host.kernel.peers[address] = replace(entry, pair=pair)
    host.start()


@ours
def pins_are_lost(world, host):
    host.kernel.lose_pins()
    host.start()


@ours
def pins_and_states_are_lost(world, host):
    host.kernel.lose_pins()
    host.kernel.flush_sas()
    host.start()


@ours
def killed_after_one_operation(world, host):
    host.kernel.left = 1


@ours
def killed_after_some_operations(world, host):
    host.kernel.left = 4


@ours
def killed_after_more_operations(world, host):
    host.kernel.left = 9


@event
def announcements_are_refused(world):
    world.refusing = 4


@ours
def restart(world, host):
    host.start()


@ours
def restart_with_another_window(world, host):
    host.arguments = [] if host.arguments else ["--replay-window=64"]
    host.start()


@ours
def uninstall_and_start(world, host):
    host.uninstall()


@ours
def announcement_is_deleted(world, host):
    world.withdraw(host.name)


@ours
def announcement_is_forged(world, host):
    info = world.infos.get(host.name)
    if info:
        world.infos[host.name] = {**info, "spec": {**info["spec"], "bootID": "forged".ljust(36, "x")}}


@ours
def address_changes(world, host):
    world.addresses[host.index] ^= 1


@event
def other_goes(world):
    world.infos.pop("n3", None)


@event
def other_comes(world):
    world.infos["n3"] = world.other


@event
def other_boots(world):
    world.boots["other"] += 1
    world.change_other(bootID=f"other-{world.boots['other']}".ljust(36, "x"))


@event
def other_has_the_boot_id_before(world):
    world.change_other(bootID="other-0".ljust(36, "x"))


@event
def other_changes_its_address(world):
    world.addresses[OTHER] ^= 1
    world.change_other(addresses=[world.address(OTHER)])


@event
def other_has_one_address_more(world):
    first = [world.address(OTHER)]
    more = world.other["spec"]["addresses"] == first
    world.change_other(addresses=[*first, f"10.99.0.{OTHER}"] if more else first)


@event
def other_rolls_its_spi_back(world):
    world.change_other(spi=max(1, world.other["spec"]["spi"] - 1))


@event
def other_has_the_newest_spi(world):
    world.change_other(spi=world.keyring.current)


@event
def other_toggles_its_window(world):
    annotations = {} if world.other["metadata"]["annotations"] else WINDOW
    world.other = {**world.other, "metadata": {**world.other["metadata"], "annotations": annotations}}
    world.change_other()


@event
def key_is_replaced(world):
    world.made += 1
    world.replace_key(material(world.made))


@event
def key_is_replaced_by_the_first(world):
    world.replace_key(material(1))


@event
def older_keys_are_forgotten(world):
    before = world.keyring
    older = {version: key for version, key in before.keys.items() if version != before.current}
    history = secret.after(secret.Keyring(before.current, older, before.used))
    world.keyring = secret.Keyring(before.current, {before.current: before.keys[before.current]}, history)
