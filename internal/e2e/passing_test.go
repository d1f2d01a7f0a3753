package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

// passing mounts with passthrough of every file that is not empty.
func passing(t *testing.T, src, mnt string, args ...string) *daemon {
	t.Helper()
	return serve(t, src, mnt, append([]string{"--passthrough-min=1"}, args...)...)
}

// Whatever opens a file while others have it open otherwise gets it: the kernel refuses a wrong mixture with EIO.
func TestPassingMixture(t *testing.T) {
	for _, args := range [][]string{{"--passthrough-min=1"}, {"--mask=all", "--passthrough-min=1"}, {"--watcher=inotify"}, {"--notify=off"}} {
		t.Run(fmt.Sprint(args), func(t *testing.T) {
			dirs := place(t, "src", "mnt")
			src, mnt := dirs[0], dirs[1]
			content := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
			check(t, os.WriteFile(src+"/big", content, 0o644))
			d := serve(t, src, mnt, args...)
			e := listen(t, mnt, notify.DefaultMask|notify.Open, "big")
			end := time.Now().Add(2 * time.Second)
			var all sync.WaitGroup
			try := func(seed uint64, dir string, modes ...int) {
				all.Go(func() {
					rng := rand.New(rand.NewPCG(seed, 1))
					buf := make([]byte, 4096)
					var held []*os.File
					defer func() {
						for _, f := range held {
							f.Close()
						}
					}()
					for time.Now().Before(end) {
						mode := modes[rng.IntN(len(modes))]
						f, err := os.OpenFile(dir+"/big", mode, 0o644)
						if err != nil {
							t.Errorf("open %#x below %s: %v", mode, filepath.Base(dir), err)
							return
						}
						if mode&unix.O_ACCMODE != os.O_WRONLY {
							if _, err := f.ReadAt(buf, rng.Int64N(1<<20)); err != nil && err != io.EOF {
								t.Errorf("read %#x: %v", mode, err)
							}
						}
						if mode&unix.O_ACCMODE != os.O_RDONLY {
							if _, err := f.Write(content[:1+rng.IntN(1<<16)]); err != nil {
								t.Errorf("write %#x: %v", mode, err)
							}
							if rng.IntN(4) == 0 {
								err = f.Truncate(1 << 20)
							}
						}
						if err = errors.Join(err, unix.Flock(int(f.Fd()), unix.LOCK_SH), unix.Flock(int(f.Fd()), unix.LOCK_UN)); err != nil {
							t.Errorf("%#x: %v", mode, err)
						}
						if held = append(held, f); len(held) > 3 {
							held[0].Close()
							held = held[1:]
						}
					}
				})
			}
			for i := range uint64(4) {
				try(i, mnt, os.O_RDONLY)
				try(10+i, mnt, os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_RDWR|os.O_TRUNC, os.O_WRONLY|os.O_APPEND, os.O_RDWR|os.O_CREATE)
			}
			try(20, src, os.O_WRONLY, os.O_RDWR|os.O_TRUNC, os.O_WRONLY|os.O_APPEND)
			all.Wait()
			if len(args) == 1 && args[0] == "--notify=off" {
				return
			}
			d.sync()
			// What the host does now is heard and read, also by who has it open.
			f, err := os.Open(mnt + "/big")
			check(t, err)
			defer f.Close()
			e2 := listen(t, mnt, notify.DefaultMask, "big")
			write(t, src+"/big", "the last word")
			e2.wait("big", "CLOSE_WRITE")
			e2.wait(".", "MODIFY big")
			buf := make([]byte, 100)
			if n, err := f.ReadAt(buf, 0); err != io.EOF || string(buf[:n]) != "the last word" {
				t.Errorf("%q, %v", buf[:n], err)
			}
			if got := read(t, mnt+"/big"); got != "the last word" {
				t.Errorf("%q", got)
			}
			if !e.has(".", "MODIFY big") {
				t.Error("no MODIFY was heard")
			}
		})
	}
}

// What the guest does with files that are passed through is heard once, as natively, and so is what the host does.
func TestPassingEcho(t *testing.T) {
	for _, mask := range []string{"default", "all"} {
		t.Run(mask, func(t *testing.T) {
			dirs := place(t, "src", "mnt", "native/plain")
			src, mnt, plain := dirs[0], dirs[1], dirs[2]
			for _, dir := range []string{src, plain} {
				check(t, os.WriteFile(dir+"/big", make([]byte, 1<<20), 0o644))
			}
			d := passing(t, src, mnt, "--mask="+mask)
			native, guest := listen(t, plain, notify.DefaultMask, "big"), listen(t, mnt, notify.DefaultMask, "big")
			work := func(dir, host string) error {
				r, err := os.Open(dir + "/big")
				if err != nil {
					return err
				}
				w, err := os.OpenFile(dir+"/big", os.O_RDWR, 0)
				if err != nil {
					return err
				}
				buf := make([]byte, 8192)
				_, rerr := r.Read(buf)
				_, werr := w.WriteAt(buf, 100)
				err = errors.Join(rerr, werr, w.Close())
				syncMount(d, dir)
				// The host, while the guest has it open still.
				for range 3 {
					h, herr := os.OpenFile(host+"/big", os.O_WRONLY, 0)
					if herr != nil {
						return herr
					}
					_, werr := h.WriteAt([]byte("x"), 5)
					err = errors.Join(err, werr, h.Close())
					syncMount(d, dir)
				}
				return errors.Join(err, r.Close())
			}
			check(t, work(plain, plain))
			check(t, work(mnt, src))
			d.sync()
			check(t, os.Mkdir(plain+"/fence", 0o755))
			fenced(t, src, guest)
			native.wait(".", "CREATE,ISDIR fence")
			compare(t, native, guest)
			for _, text := range []string{"MODIFY big", "CLOSE_WRITE big"} {
				if n := heardTimes(guest, text); n != 4 {
					t.Errorf("%d %s, want 4:\n%s", n, text, lines(guest.heard))
				}
			}
			if out := must(t, "status", "--json", mnt); bytes.Contains([]byte(out), []byte(`"READ"`)) {
				t.Errorf("the daemon was asked to read:\n%s", out)
			}
		})
	}
}

func syncMount(d *daemon, dir string) {
	if dir == d.mnt {
		d.sync()
	}
}

// Two mounts of one directory do not make events for each other without end.
func TestPassingTwice(t *testing.T) {
	dirs := place(t, "src", "a", "b")
	src := dirs[0]
	check(t, os.WriteFile(src+"/big", make([]byte, 1<<20), 0o644))
	var mounts []*daemon
	var ears []*ear
	for _, mnt := range dirs[1:] {
		mounts = append(mounts, passing(t, src, mnt))
		f, err := os.Open(mnt + "/big")
		check(t, err)
		defer f.Close()
		ears = append(ears, listen(t, mnt, notify.DefaultMask))
	}
	const times = 20
	for range times {
		f, err := os.OpenFile(src+"/big", os.O_WRONLY, 0)
		check(t, err)
		_, err = f.Write([]byte("x"))
		check(t, errors.Join(err, f.Close()))
		for range 3 { // to each other, and back
			for _, d := range mounts {
				d.sync()
			}
		}
	}
	check(t, os.Mkdir(src+"/fence", 0o755))
	for _, e := range ears {
		e.wait(".", "CREATE,ISDIR fence")
		if n := heardTimes(e, "CLOSE_WRITE big"); n != times {
			t.Errorf("%d CLOSE_WRITE, want %d", n, times)
		}
	}
}
