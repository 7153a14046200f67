#!/usr/bin/env bash
# Starts the Kmesh daemon: ./start_kmesh.sh --mode=dual-engine --enable-bypass=false --enable-ipsec=true [FLAG...]
# Mounts bpffs where it is missing, then becomes the daemon: signals reach it and its exit status is this script's.
# Works from any folder, as scripts/start_kmesh.sh of a checkout and as ./start_kmesh.sh of the container.
set -eu
here=$(dirname "$(readlink -f "$0")")

grep -q ' /sys/fs/bpf bpf ' /proc/mounts || mount -t bpf bpf /sys/fs/bpf 2>/dev/null ||
	echo "start_kmesh.sh: cannot mount bpffs at /sys/fs/bpf (not root?)" >&2
# Best effort: where modules are built in, or this is a container without modprobe, the daemon says what is missing.
modprobe -qa xfrm_user esp4 esp6 2>/dev/null || true

daemon=$here/../.venv/bin/kmesh-daemon
[ -x "$daemon" ] || daemon=$(command -v kmesh-daemon) || {
	echo "start_kmesh.sh: kmesh-daemon is not installed: run scripts/setup, or pip install ." >&2
	exit 1
}
exec "$daemon" "$@"
