package nettest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// netns is a network namespace without a name: it goes with its last process and descriptor.
type netns struct{ file *os.File }

// onThread runs f on a thread whose network namespace f may change.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- err
			return
		}
		defer home.Close()
		err = f()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread() // else the thread ends with us
		}
		done <- err
	}()
	return <-done
}

func newNetns(t testing.TB) *netns {
	t.Helper()
	n := &netns{}
	check(t, onThread(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		n.file, err = os.Open("/proc/thread-self/ns/net")
		return err
	}))
	t.Cleanup(func() { n.file.Close() })
	n.ip(t, "link", "set", "lo", "up")
	return n
}

// do runs f in the namespace. Sockets and processes that f makes stay in it.
func (n *netns) do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

// ip runs ip(8) in the namespace.
func (n *netns) ip(t testing.TB, args ...string) {
	t.Helper()
	cmd := exec.Command("ip", args...)
	check(t, n.do(func() error {
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w: %s", cmd.Args, err, out)
		}
		return nil
	}))
}

// The addresses of the server's and of the subscribers' end.
const (
	serverIP     = "10.77.0.1"
	subscriberIP = "10.77.0.2"
)

// network is a server's and the subscribers' namespace.
type network struct{ server, subs *netns }

// veth links the namespaces with a veth pair.
func veth(t testing.TB) *network {
	t.Helper()
	n := &network{newNetns(t), newNetns(t)}
	peer := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.subs.file.Fd())
	n.server.ip(t, "link", "add", "hft0", "type", "veth", "peer", "name", "hft1", "netns", peer)
	for _, end := range []struct {
		ns       *netns
		dev, net string
	}{{n.server, "hft0", serverIP}, {n.subs, "hft1", subscriberIP}} {
		end.ns.ip(t, "addr", "add", end.net+"/24", "dev", end.dev)
		end.ns.ip(t, "link", "set", end.dev, "up")
	}
	return n
}

// cut takes the veth pair down, and mend up again.
func (n *network) cut(t testing.TB)  { t.Helper(); n.server.ip(t, "link", "set", "hft0", "down") }
func (n *network) mend(t testing.TB) { t.Helper(); n.server.ip(t, "link", "set", "hft0", "up") }

// badLink is a link that is us.
type badLink struct {
	// jitter bounds what each packet is delayed by; loss and twice are per thousand.
	jitter      time.Duration
	loss, twice int
	dead        atomic.Bool // everything is lost
	overtaken   atomic.Uint64
	lost        atomic.Uint64
	doubled     atomic.Uint64

	mu  sync.Mutex
	rng *rand.Rand
	// flying bounds the packets that are on their way.
	flying chan struct{}
	wg     sync.WaitGroup
}

// bad links the namespaces with l.
func bad(t testing.TB, l *badLink) *network {
	t.Helper()
	n := &network{newNetns(t), newNetns(t)}
	l.rng = rand.New(rand.NewPCG(5, 7))
	l.flying = make(chan struct{}, 4096)
	a, b := n.server.tun(t, serverIP, subscriberIP), n.subs.tun(t, subscriberIP, serverIP)
	var pumps sync.WaitGroup
	pumps.Go(func() { l.pump(b, a) })
	pumps.Go(func() { l.pump(a, b) })
	t.Cleanup(func() {
		a.Close()
		b.Close()
		pumps.Wait()
		l.wg.Wait()
	})
	return n
}

// tun makes a tun device with our address and the peer's.
func (n *netns) tun(t testing.TB, ours, theirs string) *os.File {
	t.Helper()
	var file *os.File
	check(t, n.do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("/dev/net/tun: %w", err)
		}
		req, err := unix.NewIfreq("hft0")
		if err == nil {
			req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		if err != nil {
			unix.Close(fd)
			return fmt.Errorf("TUNSETIFF: %w", err)
		}
		file = os.NewFile(uintptr(fd), "tun")
		return nil
	}))
	n.ip(t, "addr", "add", ours, "peer", theirs, "dev", "hft0")
	n.ip(t, "link", "set", "hft0", "up")
	return file
}

func (l *badLink) intn(n int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rng.IntN(n)
}

// pump carries packets from src to dst until either is closed.
func (l *badLink) pump(dst, src *os.File) {
	var sent uint64
	var newest atomic.Uint64 // the latest packet that has arrived
	for {
		packet := make([]byte, 2048)
		n, err := src.Read(packet)
		if err != nil {
			return
		}
		packet = packet[:n]
		copies := 1
		switch {
		case l.dead.Load(), l.intn(1000) < l.loss:
			l.lost.Add(1)
			continue
		case l.intn(1000) < l.twice:
			l.doubled.Add(1)
			copies = 2
		}
		for range copies {
			select {
			case l.flying <- struct{}{}:
			default:
				continue // as a full router does
			}
			sent++
			number := sent
			l.wg.Add(1)
			time.AfterFunc(time.Duration(l.intn(int(l.jitter))), func() {
				defer l.wg.Done()
				if newest.Load() > number {
					l.overtaken.Add(1)
				} else {
					newest.Store(number)
				}
				// An error is the end of the link, or a packet lost.
				_, _ = dst.Write(packet)
				<-l.flying
			})
		}
	}
}
