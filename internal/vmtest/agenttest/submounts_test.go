package agenttest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
)

// TestSubmounts: file systems below the host's directory are mounts in the guest, and what happens in them is heard there.
func TestSubmounts(t *testing.T) {
	// Of one file system a part is shared, and the rest is where files go to and come from.
	disk := testenv.Tmpfs(t)
	for _, d := range []string{"in", "out"} {
		if err := os.Mkdir(filepath.Join(disk, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b := newBedWith(t, func(host string) {
		part := filepath.Join(host, "part")
		if err := os.Mkdir(part, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(filepath.Join(disk, "in"), part, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(part, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		for _, d := range []string{"one", "two", "one/in"} {
			d = filepath.Join(host, d)
			if err := os.Mkdir(d, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("none", d, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(d, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
			if err := os.WriteFile(filepath.Join(d, "old"), []byte("old"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	})
	for _, c := range []struct {
		name string
		run  func(b *bed)
	}{{"enter", testSubEnter}, {"numbers", testSubNumbers}, {"events", testSubEvents}, {"contents", testSubContents}, {"bind", testSubBind},
		{"parity", func(b *bed) {
			out := b.outside
			defer func() { b.outside = out }()
			b.outside = filepath.Join(disk, "out")
			parity(b, filepath.Join(disk, "in"), "/mnt/part", seeds, operations/3)
			b.fallbacks()
		}},
		{"another", testSubAnother}, {"unmount", testSubUnmount}, {"covered", testSubCovered}} {
		if !t.Run(c.name, func(t *testing.T) {
			old := b.t
			b.t = t
			defer func() { b.t = old }()
			b.vm.Use(t)
			c.run(b)
		}) {
			t.Logf("heraldfs virtiofs said:\n%s", tail(b.said.String()))
			t.Logf("the agent said:\n%s", b.vm.Run("tail -n 30 /tmp/agent.log; cat /proc/self/mountinfo"))
		}
	}
	b.vm.Run("umount /mnt; ! grep -q virtiofs /proc/mounts")
}

// testSubEnter: a watch that is for directories only enters what nobody has entered.
func testSubEnter(b *bed) {
	w := b.vm.Watch(everything|unix.IN_ONLYDIR, "/mnt", "/mnt/part")
	defer w.Close()
	b.do("mkdir part/d; rmdir part/d")
	b.expect("enter", b.fence(w), "part CREATE,ISDIR d", "part DELETE,ISDIR d")
}

// testSubNumbers: no two objects have the same numbers, and files have the host's inode number.
func testSubNumbers(b *bed) {
	b.vm.Run("ls /mnt/one/in/ /mnt/two/ >/dev/null")
	seen := map[string]string{}
	for _, p := range []string{"one/old", "two/old", "one/in/old"} {
		var st unix.Stat_t
		if err := unix.Stat(b.path(p), &st); err != nil {
			b.t.Fatal(err)
		}
		f := strings.Fields(b.vm.Run("stat -c '%d %i' /mnt/" + p))
		if len(f) != 2 || f[1] != fmt.Sprint(st.Ino) {
			b.t.Fatalf("%s has %v in the guest and inode %d on the host", p, f, st.Ino)
		}
		if other := seen[f[0]]; other != "" {
			b.t.Errorf("%s is on the device of %s", p, other)
		}
		seen[f[0]] = p
	}
}

// testSubEvents: each kind of change, in each of the mounts.
func testSubEvents(b *bed) {
	for _, d := range []string{"one", "one/in", "two"} {
		b.do("mkdir " + d + "/sub")
		b.vm.Run("ls /mnt/" + d + "/sub >/dev/null")
		b.sync()
		w := b.vm.Watch(everything, "/mnt", "/mnt/"+d, "/mnt/"+d+"/sub", "/mnt/"+d+"/old")
		for _, c := range []struct {
			script string
			want   []string
		}{
			{"echo x > D/f", []string{"D CREATE f", "D MODIFY f", "D CLOSE_WRITE f"}},
			{"chmod 600 D/f", []string{"D ATTRIB f"}},
			{"echo y >> D/old", []string{"D MODIFY old", "D/old MODIFY", "D CLOSE_WRITE old", "D/old CLOSE_WRITE"}},
			{"ln D/f D/g", []string{"D CREATE g"}},
			{"ln D/old D/h", []string{"D/old ATTRIB", "D CREATE h"}},
			{"rm D/h", []string{"D/old ATTRIB", "D DELETE h"}},
			{"ln -s f D/l", []string{"D CREATE l"}},
			{"mkdir D/d; mkdir D/hidden", []string{"D CREATE,ISDIR d", "D CREATE,ISDIR hidden"}},
			{"mv D/f D/sub/f", []string{"D MOVED_FROM f", "D/sub MOVED_TO f"}},
			// From and to where the guest has never looked.
			{"mkdir D/hidden/deep; mv D/g D/hidden/deep/g", []string{"D MOVED_FROM g"}},
			{"mv D/hidden/deep/g D/g", []string{"D MOVED_TO g"}},
			{"chmod 711 D", []string{"D ATTRIB,ISDIR"}},
			{"mv D/sub/f D/old", []string{"D/sub MOVED_FROM f", "D MOVED_TO old", "D/old ATTRIB", "D/old DELETE_SELF", "D/old IGNORED"}},
			{"rm D/g D/l; rmdir D/d", []string{"D DELETE g", "D DELETE l", "D DELETE,ISDIR d"}},
		} {
			b.do(strings.ReplaceAll(c.script, "D", d))
			want := make([]string, len(c.want))
			for i, s := range c.want {
				at, rest, _ := strings.Cut(s, " ")
				want[i] = strings.ReplaceAll(at, "D", d) + " " + rest
			}
			b.expect(c.script, b.fence(w), want...)
		}
		w.Close()
	}
	b.fallbacks()
}

// fallbacks fails if the host gave anything up.
func (b *bed) fallbacks() {
	b.t.Helper()
	if strings.Contains(b.said.String(), "event not replayed") {
		b.t.Errorf("heraldfs virtiofs said:\n%s", tail(b.said.String()))
	}
}

// testSubContents: who has heard of a change sees it.
func testSubContents(b *bed) {
	b.do("printf 0000 > two/contents")
	b.vm.Run("cat /mnt/two/contents")
	w := b.vm.Watch(everything, "/mnt", "/mnt/two")
	defer w.Close()
	file, err := os.OpenFile(b.path("two/contents"), os.O_WRONLY, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	defer file.Close()
	for i := range 20 {
		want := fmt.Sprintf("%04d", i+1)
		if _, err := file.WriteAt([]byte(want), 0); err != nil {
			b.t.Fatal(err)
		}
		b.expect("write of "+want, b.fence(w), "two MODIFY contents")
		if got := b.vm.Run("cat /mnt/two/contents"); got != want {
			b.t.Fatalf("stale: %q after a write of %q", got, want)
		}
	}
}

// testSubBind: a watcher on a recursive bind mount hears as well.
func testSubBind(b *bed) {
	b.vm.Run("mkdir -p /bind; mount -o rbind /mnt /bind")
	defer b.vm.Run("umount -l /bind")
	w := b.vm.Watch(everything, "/mnt", "/bind/two", "bind/one/in")
	defer w.Close()
	b.do("mkdir two/b; rmdir two/b; mkdir one/in/b")
	b.expect("bind", b.fence(w), "bind/two CREATE,ISDIR b", "bind/two DELETE,ISDIR b", "bind/one/in CREATE,ISDIR b")
	b.fallbacks()
}

// testSubAnother: where the kernel mounts it once more nothing is heard, but nothing stays stale.
func testSubAnother(b *bed) {
	b.do("printf 1 > two/another")
	b.vm.Run("mkdir -p /other; mount --bind /mnt /other; ls /other/two/ /mnt/two/ >/dev/null; cat /other/two/another; ! cat /other/two/later 2>/dev/null")
	defer b.vm.Run("umount /other")
	if got := strings.Fields(b.vm.Run("stat -c %d /mnt/two/another /other/two/another")); len(got) != 2 || got[0] == got[1] {
		b.t.Fatalf("devices %v: the test is none", got)
	}
	w := b.vm.Watch(everything, "/mnt", "/mnt/two", "/other/two")
	defer w.Close()
	b.do("printf 2 | dd of=two/another conv=notrunc; echo > two/later")
	b.expect("another", b.fence(w), "two MODIFY another", "two CLOSE_WRITE another",
		"two CREATE later", "two MODIFY later", "two CLOSE_WRITE later")
	b.vm.Run("until [ $(cat /other/two/another) = 2 ]; do usleep 50000; done; until [ -e /other/two/later ]; do usleep 50000; done")
}

// testSubUnmount: what the guest unmounts and enters again is another superblock.
func testSubUnmount(b *bed) {
	before := b.vm.Run("stat -c %d /mnt/two/.")
	b.vm.Run("umount /mnt/two; ls /mnt/two/ >/dev/null; grep -q ' /mnt/two ' /proc/mounts")
	b.t.Logf("device %s before, %s after", before, b.vm.Run("stat -c %d /mnt/two/."))
	b.said.Reset()
	for deadline := time.Now().Add(limit); ; {
		b.attached()
		w := b.vm.Watch(everything, "/mnt", "/mnt/two")
		b.do("mkdir two/again; rmdir two/again")
		got := b.fence(w)
		w.Close()
		if strings.Join(got, ",") == "two CREATE,ISDIR again,two DELETE,ISDIR again" {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("heard %v", got)
		}
	}
}

// testSubCovered: what the guest mounts there by itself is left alone.
func testSubCovered(b *bed) {
	b.vm.Run("mount -t tmpfs none /mnt/two; umount /mnt/one/in; mount -t tmpfs none /mnt/one")
	w := b.vm.Watch(everything, "/mnt", "/mnt/two", "/mnt/one")
	b.do("mkdir two/covered one/covered one/in/covered")
	b.expect("covered", b.fence(w))
	w.Close()
	if got := b.vm.Run("ls /mnt/two /mnt/one | grep -v :"); strings.TrimSpace(got) != "" {
		b.t.Errorf("the guest's own file systems have %q", got)
	}
	b.vm.Run("umount /mnt/two; umount /mnt/one")
}
