#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Starts the Kmesh daemon: ./start_kmesh.sh --mode=dual-engine --enable-bypass=false --enable-ipsec=true [FLAG...]
# Mounts bpffs where it is missing, then becomes the daemon: signals reach it and its exit status is this script's.
# Works from any folder, as scripts/start_kmesh.sh of a checkout and as ./start_kmesh.sh of the container.
set -eu
here=$(dirname "$(readlink -f "$0")")

# A container may not mount, and where it could, the node would not see it.
grep -q ' /sys/fs/bpf bpf ' /proc/mounts || mount -t bpf bpf /sys/fs/bpf 2>/dev/null ||
	echo "start_kmesh.sh: no bpffs at /sys/fs/bpf, and cannot mount it: as root, on the node: mount -t bpf bpf /sys/fs/bpf" >&2
# Best effort: where modules are built in, or this is a container, the kernel loads them when they are asked for.
modprobe -qa xfrm_user esp4 esp6 2>/dev/null || true

# A checkout's, the container's, or one installed by pip.
for daemon in "$here/../.venv/bin/kmesh-daemon" "$here/.venv/bin/kmesh-daemon" "$(command -v kmesh-daemon || true)"; do
	[ ! -x "$daemon" ] || exec "$daemon" "$@"
done
echo "start_kmesh.sh: kmesh-daemon is not installed: run scripts/setup, or pip install ." >&2
exit 1
