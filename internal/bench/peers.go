package main

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// peer is a way to show a directory elsewhere.
type peer struct {
	name string
	// mount is nil for the directory itself.
	mount func(b *bench, source string) (*mount, error)
}

// peers lists what is compared and installed, the native tree first, then heraldfs.
func (b *bench) peers() []peer {
	list := []peer{
		{"native", nil},
		{"heraldfs", func(b *bench, src string) (*mount, error) { return b.heraldfs(src) }},
		{"heraldfs --no-open", func(b *bench, src string) (*mount, error) { return b.heraldfs(src, "--no-open") }},
		{"go-fuse loopback", (*bench).goFuse},
	}
	if path := b.passthroughHP(); path != "" {
		list = append(list, peer{"passthrough_hp", func(b *bench, src string) (*mount, error) {
			return b.polled("passthrough_hp", src, path, "--foreground", "--num-threads=10")
		}})
	}
	if _, err := exec.LookPath("bindfs"); err == nil {
		list = append(list, peer{"bindfs", func(b *bench, src string) (*mount, error) {
			return b.polled("bindfs", src, "bindfs", "-f")
		}})
	}
	return list
}

// filePeers are the peers for work with files: besides heraldfs as it was before FUSE over io_uring, and the bare daemon.
func (b *bench) filePeers() []peer {
	const afterOurs = 3
	list := slices.Insert(b.peers(), afterOurs, peer{"heraldfs --io-uring=off", func(b *bench, src string) (*mount, error) {
		return b.heraldfs(src, "--io-uring=off")
	}})
	if _, err := exec.LookPath("gcc"); err == nil {
		list = append(list, peer{bareDaemon, (*bench).still})
	}
	return list
}

// open mounts source, or returns it as it is.
func (p peer) open(b *bench, source string) (*mount, error) {
	if p.mount == nil {
		return &mount{name: p.name, point: source}, nil
	}
	m, err := p.mount(b, source)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.name, err)
	}
	m.name = p.name
	return m, nil
}

// passthroughHP finds libfuse's example, which scripts/bench-deps.sh builds.
func (b *bench) passthroughHP() string {
	path, err := filepath.Abs("bin/peers/passthrough_hp")
	if err != nil {
		return ""
	}
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

// heraldfs mounts source. Whoever calls it closes the mount.
func (b *bench) heraldfs(source string, flags ...string) (*mount, error) {
	m, err := b.mountWith("heraldfs", func(point string) (*process, error) {
		argv := append([]string{b.program, "mount", "--log-level=warn"}, flags...)
		return b.start("ready", onReadyFD, append(argv, source, point)...)
	})
	if err != nil {
		return nil, err
	}
	ring, err := overIOURing(m.proc.cmd.Process.Pid)
	if err != nil {
		return nil, errors.Join(err, m.close())
	}
	b.came.add(strings.Join(append([]string{"heraldfs"}, flags...), " "), ring)
	return m, nil
}

func (b *bench) goFuse(source string) (*mount, error) {
	return b.mountWith("go-fuse loopback", func(point string) (*process, error) {
		return b.start("ready", onStdout, b.loopback, source, point)
	})
}

// polled mounts source with a program that stays in the foreground and does not say when it is
// ready: only the mount table tells.
func (b *bench) polled(name, source string, argv ...string) (*mount, error) {
	return b.mountWith(name, func(point string) (*process, error) {
		p := &process{cmd: exec.Command(argv[0], append(argv[1:], source, point)...), lax: true}
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
		began := time.Now()
		if err := p.cmd.Start(); err != nil {
			return nil, err
		}
		for {
			var st unix.Statfs_t
			if err := unix.Statfs(point, &st); err == nil && st.Type == unix.FUSE_SUPER_MAGIC {
				p.ready = time.Since(began)
				return p, nil
			}
			if time.Since(began) > patience || b.ctx.Err() != nil {
				return nil, errors.Join(errors.New(name+" did not get ready"), p.stop(unix.SIGTERM))
			}
			time.Sleep(time.Millisecond)
		}
	})
}

// all mounts source with everything that can know as many files as the walks have, the native tree
// first: passthrough_hp needs a descriptor for each.
func (b *bench) all(source string) ([]*mount, error) {
	var mounts []*mount
	for _, p := range b.peers() {
		if p.name == "passthrough_hp" {
			continue
		}
		m, err := p.open(b, source)
		if err != nil {
			return nil, err
		}
		b.later(m.close)
		mounts = append(mounts, m)
	}
	return mounts, nil
}

// requests returns how many FUSE requests a heraldfs mount has read so far, by opcode.
func (m *mount) requests() (map[string]int, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Getxattr(m.point, "user.heraldfs.status", buf)
	if err != nil {
		return nil, fmt.Errorf("status of %s: %w", m.point, err)
	}
	var st struct {
		Requests map[string]int `json:"fuse_requests"`
	}
	err = json.Unmarshal(buf[:n], &st)
	return st.Requests, err
}

//go:embed floor/floor.c
var floorSource []byte

// floor mounts the least of all daemons. Nil: there is no C compiler.
func (b *bench) floor() (*mount, error) {
	if _, err := exec.LookPath("gcc"); err != nil {
		return nil, nil
	}
	bin, err := b.compile("floor", floorSource)
	if err != nil {
		return nil, err
	}
	return b.mountWith("floor", func(point string) (*process, error) { return b.start("ready", onStdout, bin, point) })
}

//go:embed floor/still.c
var stillSource []byte

const bareDaemon = "bare daemon"

// still mounts source with the least of all daemons that shows one.
func (b *bench) still(source string) (*mount, error) {
	bin, err := b.compile("still", stillSource)
	if err != nil {
		return nil, err
	}
	return b.mountWith("still", func(point string) (*process, error) { return b.start("ready", onStdout, bin, source, point) })
}

// compile makes a program of C, once.
func (b *bench) compile(name string, text []byte) (string, error) {
	src, bin := filepath.Join(b.dir, name+".c"), filepath.Join(b.dir, name)
	if _, err := os.Stat(bin); err == nil {
		return bin, nil
	}
	if err := os.WriteFile(src, text, 0o644); err != nil {
		return "", err
	}
	if text, err := exec.CommandContext(b.ctx, "gcc", "-O2", "-o", bin, src).CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", name, err, text)
	}
	return bin, nil
}

// ask makes one request that is answered from memory.
func ask(point string) error {
	var st unix.Statx_t
	return unix.Statx(unix.AT_FDCWD, point, unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &st)
}

// roundTrip measures requests answered by the floor's daemon, in a row: the median of the rounds, each of which
// has a mean, and the single requests. Zero: there is no daemon.
func (b *bench) roundTrip() (trip time.Duration, single []time.Duration, err error) {
	m, err := b.floor()
	if m == nil || err != nil {
		return 0, nil, err
	}
	const calls, rounds = 2000, 9
	var each []time.Duration
	for range rounds {
		began := time.Now()
		last := began
		err = errors.Join(err, repeat(calls, func(int) error {
			err := ask(m.point)
			now := time.Now()
			single, last = append(single, now.Sub(last)), now
			return err
		}))
		each = append(each, last.Sub(began)/calls)
	}
	return median(each), single, errors.Join(err, m.close())
}

// rested measures requests to the floor's daemon after everything has fallen asleep.
func (b *bench) rested(n int) ([]time.Duration, error) {
	m, err := b.floor()
	if m == nil || err != nil {
		return nil, err
	}
	var each []time.Duration
	for range n {
		time.Sleep(delayGap)
		began := time.Now()
		err = errors.Join(err, ask(m.point))
		each = append(each, time.Since(began))
	}
	return each, errors.Join(err, m.close())
}
