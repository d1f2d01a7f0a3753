//go:build linux

package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHelperArgs(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		// By mount.fuse3.
		{"heraldfs /src /mnt", "mount --daemon /src /mnt"},
		{"heraldfs /src /mnt -o rw,dev,suid", "mount --daemon /src /mnt -o rw,dev,suid"},
		{"/usr/bin/heraldfs ./src /mnt -o ro", "mount --daemon ./src /mnt -o ro"},
		// By mount(8).
		{"/sbin/mount.heraldfs /src /mnt", "mount --daemon /src /mnt"},
		{"mount.heraldfs src /mnt -n -o ro,mask=delete", "mount --daemon src /mnt -o ro,mask=delete"},
		{"mount.fuse.heraldfs /src /mnt -fnv -o rw -t fuse.heraldfs", "mount --daemon /src /mnt --dry-run -o rw"},
		{"mount.heraldfs /src /mnt -sv", "mount --daemon /src /mnt --sloppy"},
		{"mount.heraldfs /src /mnt -N /proc/1/ns/mnt", "mount --daemon /src /mnt -N /proc/1/ns/mnt"},
		{"mount.heraldfs /src /mnt -o", "mount --daemon /src /mnt -o"},
		{"mount.heraldfs", "mount --daemon"},
		// By people.
		{"heraldfs", ""},
		{"heraldfs mount /src /mnt", "mount /src /mnt"},
		{"heraldfs mount -fv ./a ./b", "mount -fv ./a ./b"},
		{"heraldfs umount /mnt /mnt2", "umount /mnt /mnt2"},
		{"heraldfs watch a/b c/d", "watch a/b c/d"},
		{"heraldfs --help /a /b", "--help /a /b"},
		{"heraldfs /only", "/only"},
	} {
		got := helperArgs(strings.Fields(c.in))
		if d := cmp.Diff(strings.Fields(c.want), got, cmp.Transformer("same", func(s []string) string { return strings.Join(s, " ") })); d != "" {
			t.Errorf("%s: %s", c.in, d)
		}
	}
	if got := helperArgs(nil); got != nil {
		t.Errorf("no command line at all: %q", got)
	}
}
