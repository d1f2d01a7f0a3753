package agenttest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/internal/vmtest"
)

// virtiofsd has a descriptor for each file: more files than these, and it reaches the limit of 20,000 that many machines have.
const (
	walkDirs  = 180
	walkFiles = 100
	walkAll   = 1 + walkDirs*(walkFiles+1)
)

// TestWalk: the second walk of a tree over heraldfs, with an agent, is not slower than over virtiofsd with a cache that never
// ends, and four times as fast as with that of a second; and what the host changes between walks is seen at once. What the
// guest knows costs no descriptors.
func TestWalk(t *testing.T) {
	const virtiofsd = "/usr/lib/qemu/virtiofsd"
	if _, err := os.Stat(virtiofsd); err != nil {
		testenv.Lack(t, err.Error())
	}
	b, o := newHost(t, func(host string) {
		for d := range walkDirs {
			sub := filepath.Join(host, fmt.Sprintf("d%03d", d))
			if err := os.Mkdir(sub, 0o755); err != nil {
				t.Fatal(err)
			}
			for f := range walkFiles {
				if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("f%03d", f)), []byte("0"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
	dirs := []string{"/mnt", "/always", "/auto"}
	for _, dir := range dirs[1:] {
		cache := dir[1:]
		socket := b.socket + "-" + cache
		cmd := exec.Command(virtiofsd, "--socket-path="+socket, "-o", "source="+b.host, "-o", "sandbox=chroot", "-o", "cache="+cache)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
		})
		for deadline := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
			if _, err := os.Stat(socket); err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("virtiofsd makes no %s", socket)
			}
		}
		o.Shares = append(o.Shares, vmtest.Share{Socket: socket, Tag: cache})
	}
	b.vm = vmtest.Start(t, o)
	b.vm.Mount("share", "/mnt")
	b.startAgent()
	walk := func(dir string) (n int, took time.Duration) {
		var ns int64
		if _, err := fmt.Sscan(b.vm.Run("guestd walk "+dir), &n, &ns); err != nil {
			t.Fatal(err)
		}
		return n, time.Duration(ns)
	}
	before := b.descriptors()
	for _, dir := range dirs {
		if dir != "/mnt" {
			b.vm.Mount(dir[1:], dir)
		}
		if n, _ := walk(dir); n != walkAll {
			t.Fatalf("walk of %s: %d entries, want %d", dir, n, walkAll)
		}
	}
	got := b.descriptors() - before
	t.Logf("%d descriptors for %d files that the guest knows", got, walkAll)
	if got > 2*walkDirs {
		t.Errorf("these are too many")
	}
	took := map[string][]time.Duration{}
	// In turn: what else the machine does meets all of them.
	for round := range 5 {
		change(b, round)
		for _, dir := range dirs {
			if dir == "/auto" && round%2 == 1 {
				continue // it takes longer than everything else here
			}
			if dir == "/auto" {
				// Its cache of a second shall have ended, as it has when somebody walks now and then.
				b.vm.Run("sleep 1.2")
			}
			n, d := walk(dir)
			took[dir] = append(took[dir], d)
			if want := walkAll + round + 1; dir == "/mnt" && n != want {
				t.Errorf("walk %d over heraldfs: %d entries, want %d", round, n, want)
			} else if n != want {
				t.Logf("walk %d of %s: %d entries, there are %d", round, dir, n, want)
			}
		}
	}
	median := func(dir string) time.Duration {
		s := slices.Sorted(slices.Values(took[dir]))
		return s[len(s)/2]
	}
	for _, dir := range dirs {
		t.Logf("further walks of %d entries over %s: median %v of %v, %.2f times heraldfs", walkAll, dir,
			median(dir).Round(time.Millisecond), took[dir], float64(median(dir))/float64(median("/mnt")))
	}
	// The fastest of each, since a busy machine only adds to it.
	ours := slices.Min(took["/mnt"])
	for dir, times := range map[string]time.Duration{"/always": 1, "/auto": 4} {
		if theirs := slices.Min(took[dir]); times*ours > theirs {
			t.Errorf("heraldfs takes %v, %s %v: want %d times as much at least", ours, dir, theirs, times)
		}
	}
}

// change makes one entry more on the host, and changes others in ways that neither size nor name tell. The guest, which had
// all of it in its caches, sees that as soon as sync has returned.
func change(b *bed, round int) {
	b.t.Helper()
	d := fmt.Sprintf("d%03d/", round)
	b.vm.Look("/mnt/"+d+"f000", "/mnt/"+d+"f001", "/mnt/"+d+"f002", "/mnt/"+d+"new", "/mnt/"+d+"moved")
	b.do("cd " + d + `; printf 1 | dd of=f000 conv=notrunc 2>/dev/null; mv f001 moved; rm f002; printf n > new; mkdir sub`)
	b.sync()
	got := b.vm.Look("/mnt/"+d+"f000", "/mnt/"+d+"f001", "/mnt/"+d+"f002", "/mnt/"+d+"new", "/mnt/"+d+"moved")
	if string(got[0].Content) != "1" || got[1].Mode != 0 || got[2].Mode != 0 || string(got[3].Content) != "n" || string(got[4].Content) != "0" {
		b.t.Errorf("stale after the changes of round %d: %+v", round, got)
	}
}

// descriptors is how many the process that serves has.
func (b *bed) descriptors() int {
	b.t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", b.server()))
	if err != nil {
		b.t.Fatal(err)
	}
	return len(list)
}
