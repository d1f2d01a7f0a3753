#!/bin/sh
# Installs what `make bench` compares heraldfs with, from Debian's packages, and builds libfuse's
# passthrough_hp, which no package has, from Debian's source package into bin/peers. Run as root it
# installs; as somebody else it says what is missing and goes on: the bench
# leaves out what is not there.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
peers=$here/../bin/peers

missing=
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
need bindfs bindfs
need rg ripgrep
need git git
need strace strace
need inotifywait inotify-tools
need fswatch fswatch
need watchman watchman
need npm npm
need gcc gcc
need g++ g++
need pkg-config pkg-config
need dpkg-source dpkg-dev
[ -e /usr/include/fuse3/fuse_lowlevel.h ] || missing="$missing libfuse3-dev"

if [ -n "$missing" ]; then
	if [ "$(id -u)" != 0 ]; then
		echo "bench-deps: not root; for all comparisons: sudo apt-get install$missing" >&2
		exit 0
	fi
	echo "bench-deps: installing:$missing"
	apt-get update -q
	# shellcheck disable=SC2086 # a list of words
	DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
fi

[ ! -x "$peers/passthrough_hp" ] || exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$peers"
# The sources are where the packages of this machine come from.
# shellcheck disable=SC2016 # apt's own variables
apt-get indextargets --format 'deb-src $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' | sort -u >"$work/src.list"
set -- -q -o "Dir::Etc::SourceList=$work/src.list" -o Dir::Etc::SourceParts=- -o "Dir::State::Lists=$work/lists" \
	-o APT::Sandbox::User=root
cd "$work"
if apt-get update "$@" && apt-get source "$@" fuse3; then
	cd fuse3-*/example
	# shellcheck disable=SC2046 # a list of words
	g++ -O2 -o "$peers/passthrough_hp" passthrough_hp.cc $(pkg-config --cflags --libs fuse3) -lpthread
else
	echo "bench-deps: no source package of fuse3; the bench goes without passthrough_hp" >&2
fi
