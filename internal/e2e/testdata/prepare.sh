#!/bin/sh
# Installs the client programs of the end-to-end tests: Debian packages, and
# chokidar into a cache directory outside of the source tree. The tests
# themselves never install anything.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/heraldfs-test

missing=
command -v inotifywait >/dev/null || missing="$missing inotify-tools"
command -v fusermount3 >/dev/null || missing="$missing fuse3"
command -v node >/dev/null || missing="$missing nodejs"
command -v npm >/dev/null || missing="$missing npm"
/usr/bin/python3 -c 'import watchdog' 2>/dev/null || missing="$missing python3-watchdog"
if [ -n "$missing" ]; then
	if [ "$(id -u)" != 0 ]; then
		echo "prepare: as root: apt-get install -y$missing" >&2
		exit 1
	fi
	apt-get update -q
	# shellcheck disable=SC2086 # a list of words
	DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
fi

if ! cmp -s "$here/package.json" "$cache/package.json" || [ ! -d "$cache/node_modules/chokidar" ]; then
	mkdir -p "$cache"
	npm install --prefix "$cache" --no-audit --no-fund --silent "chokidar@$(
		sed -n 's/.*"chokidar": "\(.*\)".*/\1/p' "$here/package.json"
	)"
	cp "$here/package.json" "$cache/package.json"
fi
echo "clients are in $cache"
