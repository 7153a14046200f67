#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The image's steps, in one place: for a container engine (deploy/Containerfile), and without one.
#
#     deploy/build-rootfs.sh              the image's root file system, in a folder that it prints: built if it is not
#                                         there for these sources, which needs root
#     deploy/build-rootfs.sh sizes        that, and what takes how much of it
#     deploy/build-rootfs.sh packages     (in a Debian 12 that becomes the image) the packages that the daemon needs
#     deploy/build-rootfs.sh wheels OUT   what is put into the image: the project and what it needs from pip, in the
#                                         versions, and with the hashes, of deploy/constraints.txt; scripts
#     deploy/build-rootfs.sh install OUT  (in a Debian 12 that becomes the image) that, to /kmesh
#     deploy/build-rootfs.sh constraints  (on a Debian 12) write deploy/constraints.txt anew: the newest versions that
#                                         pyproject.toml allows
#
# DEBIAN=trixie, in the environment: a Debian 13 instead, whose Python and BCC are newer.
set -eu -o pipefail
here=$(dirname "$(readlink -f "$0")")
say() { printf 'build-rootfs: %s\n' "$*" >&2; }

release=${DEBIAN:-bookworm}
# BCC compiles against the UAPI headers; iptables is for reading the rules of others. Nothing loads modules or mounts
# here: that is the node's.
packages="python3 python3-bpfcc nftables iptables linux-libc-dev"
# What the image is made from, below the root of the checkout.
sources="pyproject.toml setup.py MANIFEST.in README.md LICENSES deploy/constraints.txt bpf kmesh_bpf python"
scripts="scripts/start_kmesh.sh scripts/dump_maps deploy/sbom.py"

install_packages() {
	apt-get -qq update
	# shellcheck disable=SC2086 # a list of words
	DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install $packages >/dev/null
	rm -rf /var/lib/apt/lists/*
}

python_of() { # a release: its Python
	case $1 in bookworm) echo 3.11 ;; trixie) echo 3.13 ;; *) say "whose Python is that of Debian $1?"; return 1 ;; esac
}

make_wheels() { # OUT
	local out=$1 draft
	draft=$(mktemp -d)
	# In a copy: pip builds in the folder it is given, and would leave its work there.
	# shellcheck disable=SC2086 # a list of words
	(cd "$here/.." && cp -r --parents -t "$draft" $sources)
	mkdir -p "$out"
	/usr/bin/python3 -m venv "$draft/venv"
	# First all that the project needs, to build it too, each file of a known hash; then the project, from these alone.
	pip() { "$draft/venv/bin/pip" --disable-pip-version-check -q "$@" >&2; }
	pip download --no-deps --require-hashes --only-binary=:all: --python-version "$(python_of "$release")" \
		-d "$out" -r "$draft/deploy/constraints.txt"
	# What builds the project runs here, whatever is built for.
	pip install --upgrade --require-hashes -r "$draft/deploy/constraints.txt"
	pip --isolated wheel --no-index --no-deps --no-build-isolation -w "$out" "$draft"
	# shellcheck disable=SC2086 # a list of words
	(cd "$here/.." && cp -t "$out" $scripts "$here/build-rootfs.sh")
	rm -rf "$draft"
}

install_wheels() { # OUT
	local out=$1 pip
	pip=$(echo "$out"/pip-*.whl)/pip
	python3 -m venv --without-pip --system-site-packages /kmesh/.venv
	# pip comes in its wheel and does not stay. What the machine's environment says to pip is not meant for this.
	/kmesh/.venv/bin/python -I "$pip" --isolated -q install --no-index --root-user-action=ignore --find-links "$out" kmesh-ipsec
	cp "$out/start_kmesh.sh" "$out/dump_maps" /kmesh/
	# What is in the image, by name and version: for whoever looks for what has to be mended.
	/kmesh/.venv/bin/python -I "$out/sbom.py" /var/lib/dpkg/status >/kmesh/sbom.cdx.json
	ln -sf /kmesh/.venv/bin/kmesh-daemon /kmesh/.venv/bin/kmeshctl /usr/local/bin/
	mkdir -p /kmesh/kmesh-ipsec /var/lib/kmesh-ipsec
	# The guide's step 2 starts the daemon by `/bin/sh -c`. dash would stay in between, and as a container's first
	# process take the signal to end and do nothing about it; bash becomes the program.
	ln -sf bash /usr/bin/sh
}

make_constraints() { # of the files on the index for all machines, so that one list does for each
	local draft
	draft=$(mktemp -d)
	/usr/bin/python3 -m venv "$draft/venv"
	"$draft/venv/bin/pip" --disable-pip-version-check -q install 'pip-tools>=7.6,<8'
	{
		echo "# What the image holds from pip, Python 3.11: written by deploy/build-rootfs.sh constraints."
		/usr/bin/python3 - "$here/../pyproject.toml" <<-'P' >"$draft/needed.in"
			import sys, tomllib
			with open(sys.argv[1], "rb") as file:
			    project = tomllib.load(file)
			needed = (*project["project"]["dependencies"], *project["build-system"]["requires"], "pip")
			print(*(one.partition(";")[0] for one in needed), sep="\n")  # the image is Linux
		P
		cd "$draft" && venv/bin/pip-compile -q --generate-hashes --allow-unsafe --strip-extras --no-header --no-annotate \
			--no-emit-index-url --no-emit-find-links --no-emit-trusted-host -o constraints.txt needed.in >&2
		cat constraints.txt
	} >"$draft/whole"
	mv "$draft/whole" "$here/constraints.txt"
	rm -rf "$draft"
}

debian() { # apt's own sources, as this machine has them, for the release
	local own
	own=$(. /etc/os-release && echo "$VERSION_CODENAME")
	# shellcheck disable=SC2016 # apt fills these in
	apt-get indextargets --format '$(ORIGIN) deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
		sed -n "s/^Debian \(deb [^ ]* \)$own\([^ ]* main\)$/\1$release\2/p" | sort -u
}

make_base() { # FOLDER: Debian with the packages
	local from options
	"$here/../scripts/setup" --image
	from=$(debian)
	[ -n "$from" ] || { say "apt knows no Debian $release here (apt-get update?)"; return 1; }
	options=$(mktemp)
	apt-config dump Acquire >"$options"
	say "Debian $release and $packages, with mmdebstrap (two minutes)"
	# usrmerge would bring all of Perl; nothing has to be merged that was made so.
	# shellcheck disable=SC2016 # mmdebstrap's shell fills in $1, not this one
	mmdebstrap --quiet --mode=root --variant=essential --include="${packages// /,}" --aptopt="$options" \
		--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
		--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
		--setup-hook='printf "Package: usrmerge\nPin: release *\nPin-Priority: -1\n" >"$1/etc/apt/preferences.d/usrmerge"' \
		"$release" "$1" <<<"$from" >&2
	# Of the machine that it was made on.
	rm -r "$options" "$1/etc/apt" "$1/etc/resolv.conf" "$1/etc/hostname"
}

make_root() { # prints its folder
	local cache base_name name start=$SECONDS
	[ "$(id -u)" = 0 ] || { say "must run as root"; return 1; }
	cache=${XDG_CACHE_HOME:-$HOME/.cache}/kmesh-image/$release
	base_name=base-$({ echo "$release $packages"; declare -f make_base debian; } | sha256sum | cut -c 1-16)
	# shellcheck disable=SC2086 # a list of words
	name=root-$({ cd "$here/.." && find $sources $scripts -type f ! -name '*.so' ! -name '*.pyc' ! -name '_abi.c' \
		! -path '*.egg-info/*' -print0 | sort -z | xargs -0 sha256sum; echo "$base_name"; } | sha256sum | cut -c 1-16)
	if [ ! -d "$cache/$name" ]; then
		mkdir -p "$cache"
		draft=$(mktemp -d "$cache/draft.XXXXXX")
		trap 'rm -rf "$draft"' EXIT
		if [ ! -d "$cache/$base_name" ]; then
			make_base "$draft/base"
			rm -rf "$cache"/base-*
			mv -T "$draft/base" "$cache/$base_name"
		fi
		cp -a "$cache/$base_name" "$draft/root"
		make_wheels "$draft/root/out"
		chroot "$draft/root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin bash /out/build-rootfs.sh install /out
		rm -r "$draft/root/out"
		# Whole or not at all, and only the newest is kept.
		rm -rf "$cache"/root-*
		mv -T "$draft/root" "$cache/$name"
		say "built in $((SECONDS - start)) s, $(du -sm "$cache/$name" | cut -f1) MB"
	fi
	printf '%s\n' "$cache/$name"
}

sizes() { # what takes how much: Debian's packages as dpkg tells them, and /kmesh
	local folder
	folder=$(make_root)
	{
		# shellcheck disable=SC2016 # dpkg-query fills these in
		dpkg-query --admindir="$folder/var/lib/dpkg" -W -f '${Package} ${Installed-Size}\n'
		echo "/kmesh $(du -sk "$folder/kmesh" | cut -f1)"
	} | /usr/bin/python3 -c "$(cat <<-'P'
		import re, sys
		from collections import Counter
		parts = {
		    "the compiler: LLVM and clang": r"lib(llvm|clang)", "BCC": r"\S*bpfcc", "Python": r"\S*python",
		    "nft and iptables": r"iptables|nftables|lib(nft|xtables|ip[46]|nfnetlink|netfilter)",
		    "ours, and what it needs from pip": r"/kmesh", "UAPI headers": r"linux-libc-dev", "Debian, all else": "",
		}
		sizes = Counter()
		for line in sys.stdin:
		    name, kilobytes = line.split()
		    sizes[next(part for part, names in parts.items() if re.match(names, name))] += int(kilobytes or 0)
		for part, size in sizes.most_common():
		    print(f"{size / 1024:5.0f} MB  {part}")
	P
	)"
	printf '%5d MB  in all, as du counts\n' "$(du -sm "$folder" | cut -f1)"
}

case "${1:-} $#" in
" 0") make_root ;;
"sizes 1") sizes ;;
"packages 1") install_packages ;;
"wheels 2") make_wheels "$(realpath -m "$2")" ;;
"install 2") install_wheels "$2" ;;
"constraints 1") make_constraints ;;
*)
	sed -n '3,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"
	case ${1:-} in -h | --help) exit 0 ;; *) exit 2 ;; esac
	;;
esac
