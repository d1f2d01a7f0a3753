#!/bin/sh
# Installs what `make test` needs beyond Go, from Debian's packages. Run as
# root it installs; as somebody else it says what is missing and goes on, and the tests
# that need it are skipped.
set -eu
here=$(cd "$(dirname "$0")" && pwd)

missing=
need() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ] || missing="$missing $2"; }
need gcc gcc
[ -e /usr/include/stdio.h ] || missing="$missing libc6-dev"
need inotifywait inotify-tools
need fusermount3 fuse3
need mount mount
need mkfs.ext4 e2fsprogs
need mkfs.xfs xfsprogs
need mkfs.btrfs btrfs-progs
need setfacl acl
need setfattr attr
need strace strace
need ip iproute2
need systemd-analyze systemd
need setpriv util-linux
need qemu-system-x86_64 qemu-system-x86
[ -x /usr/lib/qemu/virtiofsd ] || missing="$missing qemu-system-common"
need node nodejs
need npm npm
/usr/bin/python3 -c 'import watchdog' 2>/dev/null || missing="$missing python3-watchdog"

lists_fresh() { [ -n "$(find /var/lib/apt/lists -maxdepth 1 -name '*_Packages*' 2>/dev/null | head -n 1)" ]; }

if [ "$(id -u)" != 0 ]; then
	[ -z "$missing" ] || echo "test-deps: not root; for all tests: sudo apt-get install$missing" >&2
	exit 0
fi
# The VM tests download a kernel package and need a package list for that, too.
if [ -n "$missing" ] || ! lists_fresh; then
	echo "test-deps: installing:$missing"
	apt-get update -q
	# shellcheck disable=SC2086 # a list of words
	[ -z "$missing" ] || DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
fi
sh "$here/../internal/e2e/testdata/prepare.sh"
