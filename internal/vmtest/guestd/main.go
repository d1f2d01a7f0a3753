// Command guestd is the init of a test guest: it mounts the pseudo file systems, finds
// its virtio-serial port, and does what it is asked to there. With arguments it is one of the
// guest's tools instead.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/vmtest/wire"
)

// maxOutput bounds what a command may print.
const maxOutput = 8 << 20

func main() {
	if len(os.Args) > 1 {
		if err := tool(os.Args[1], os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "guestd:", err)
			os.Exit(1)
		}
		return
	}
	// An init that ends is a kernel panic, which the host sees on the console.
	fmt.Fprintln(os.Stderr, "guestd:", serve())
	os.Exit(1)
}

// booted is sd_booted(3): the guest's init is systemd.
func booted() bool {
	_, err := os.Lstat("/run/systemd/system")
	return err == nil
}

// prepare mounts the pseudo file systems and has busybox be all its programs, where no other init has.
func prepare() error {
	for _, m := range []struct{ typ, dir string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.typ, m.dir, m.typ, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	os.Setenv("PATH", "/bin")
	if out, err := exec.Command("/bin/busybox", "--install", "-s", "/bin").CombinedOutput(); err != nil {
		return fmt.Errorf("busybox: %w: %s", err, out)
	}
	return nil
}

// serve carries out requests until the machine ends; it returns only with an error.
func serve() error {
	if !booted() {
		if err := prepare(); err != nil {
			return err
		}
	}
	port, err := openPort(wire.PortName)
	if err != nil {
		return err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	s := &server{enc: json.NewEncoder(port), watches: make(map[uint64]*os.File)}
	s.send(wire.Message{Hello: strings.TrimSpace(string(boot))})
	dec := json.NewDecoder(bufio.NewReader(patient{port}))
	for {
		var r wire.Request
		if err := dec.Decode(&r); err != nil {
			return fmt.Errorf("read request: %w", err)
		}
		go s.do(r)
	}
}

// patient reads a port whose other end may not be there yet: the driver gives
// an end of file until the device has said that the host is connected, and its poll does not wait for that.
type patient struct{ f *os.File }

func (p patient) Read(b []byte) (int, error) {
	for {
		n, err := p.f.Read(b)
		if err != io.EOF {
			return n, err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func openPort(name string) (*os.File, error) {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err == nil && strings.TrimSpace(string(b)) == name {
			return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(n)), os.O_RDWR, 0)
		}
	}
	return nil, fmt.Errorf("no virtio port %s among %d", name, len(names))
}

type server struct {
	mu      sync.Mutex
	enc     *json.Encoder
	watches map[uint64]*os.File
}

func (s *server) send(m wire.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.enc.Encode(m); err != nil {
		fmt.Fprintln(os.Stderr, "guestd: send:", err)
	}
}

func (s *server) do(r wire.Request) {
	m := wire.Message{ID: r.ID, Done: true}
	var err error
	switch {
	case len(r.Watch) > 0:
		m.Done = false
		err = s.watch(r)
	case r.Unwatch != 0:
		err = s.unwatch(r.Unwatch)
	case r.Sync != "" || len(r.Look) > 0:
		if r.Sync != "" {
			err = readAttr(r.Sync, r.Attr)
		}
		if err != nil {
			break
		}
		for _, path := range r.Look {
			m.Looks = append(m.Looks, lookAt(path))
		}
	default:
		m.Output, m.Exit, err = run(r)
	}
	if err != nil {
		m.Done, m.Error = true, err.Error()
	}
	s.send(m)
}

// limited keeps the first maxOutput bytes.
type limited struct{ bytes.Buffer }

func (l *limited) Write(b []byte) (int, error) {
	if room := maxOutput - l.Len(); len(b) > room {
		l.Buffer.Write(b[:room])
		return len(b), nil
	}
	return l.Buffer.Write(b)
}

func run(r wire.Request) ([]byte, int, error) {
	if len(r.Argv) == 0 {
		return nil, 0, errors.New("no command")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(r.Seconds*float64(time.Second)))
	defer cancel()
	cmd := exec.CommandContext(ctx, r.Argv[0], r.Argv[1:]...)
	cmd.Stdin = bytes.NewReader(r.Stdin)
	var out limited
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && ctx.Err() == nil {
		return out.Bytes(), exit.ExitCode(), nil
	}
	return out.Bytes(), 0, err
}
