package vmtest

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/internal/vmtest/wire"
)

const (
	// bootTimeout is thirty times what a boot takes on an idle machine.
	bootTimeout = 90 * time.Second
	// commandTimeout is for commands that do not say.
	commandTimeout = 30 * time.Second
	// boots is how often a boot is tried.
	boots = 2
)

// Share is a virtiofs device of the machine: a vhost-user socket and the tag to mount.
type Share struct {
	Socket, Tag string
	// Hotplug puts it into a slot of its own, for Detach and Attach.
	Hotplug bool
	// Queues is the number of request queues; 0 is 1.
	Queues int
}

// Options configures Start. The zero value boots a machine without shares.
type Options struct {
	Shares []Share
	// MemoryMB is the guest's memory; 0 is 512.
	MemoryMB int
	// Ports are virtio-serial ports, by name, each with the unix socket that QEMU connects to, again
	// and again.
	Ports map[string]string
	// Files are put into the guest, by their path there without leading slash.
	Files map[string]string
	// Root, if not empty, is the tag of the share that is the guest's root file system, as SystemdRoot makes one. There is no
	// initramfs then, and systemd is the init.
	Root string
	// Inittab, if not empty, is for busybox's init, which is the guest's then; it has to run /bin/guestd.
	Inittab string
}

// VM is a running guest.
type VM struct {
	t       testing.TB
	dir     string
	cmd     *exec.Cmd
	exited  chan struct{}
	exitErr error
	port    net.Conn
	qmp     *qmp
	hello   chan string
	reading sync.WaitGroup

	mu      sync.Mutex
	next    uint64
	pending map[uint64]chan wire.Message
	watches map[uint64]chan wire.Event
	gone    bool
}

// ErrGone says that the machine has ended, or its guest has panicked.
var ErrGone = errors.New("the guest is gone")

// Need skips the test where no guest can run, or fails it in CI.
func Need(t testing.TB) {
	t.Helper()
	testenv.NeedTool(t, "qemu-system-x86_64", "apt-get", "apt-cache", "dpkg", "go")
	if runtime.GOARCH != "amd64" {
		testenv.Lack(t, "guests are amd64, this is "+runtime.GOARCH)
	}
}

// Start boots a guest and ends it when the test ends.
func Start(t testing.TB, o Options) *VM {
	t.Helper()
	Need(t)
	assets, err := FetchAssets()
	if err != nil {
		t.Fatal(err)
	}
	name := accel.choose(t, assets)
	for try := 1; ; try++ {
		begin := time.Now()
		vm, err := boot(t, o, assets, name, bootTimeout)
		if err == nil {
			t.Logf("guest booted by %s in %v", name, time.Since(begin).Round(10*time.Millisecond))
			t.Cleanup(vm.kill)
			return vm
		}
		if try == boots {
			t.Fatalf("boot %d: %v", try, err)
		}
		t.Logf("boot %d: %v", try, err)
	}
}

func boot(t testing.TB, o Options, a Assets, accel string, limit time.Duration) (*VM, error) {
	// Socket paths are short; the test's own directory may not be.
	dir, err := os.MkdirTemp("", "vm-")
	if err != nil {
		return nil, err
	}
	vm := &VM{t: t, dir: dir, exited: make(chan struct{}), hello: make(chan string, 4),
		pending: make(map[uint64]chan wire.Message), watches: make(map[uint64]chan wire.Event)}
	if err := vm.start(o, a, accel, limit); err != nil {
		console, log := vm.console(), vm.log()
		vm.kill()
		return nil, fmt.Errorf("%w\nQEMU: %s\nconsole: %s", err, log, console)
	}
	return vm, nil
}

func (vm *VM) start(o Options, a Assets, accel string, limit time.Duration) error {
	initrd := ""
	if o.Root == "" {
		initrd = filepath.Join(vm.dir, "initrd")
		if err := writeInitramfs(initrd, a.Busybox, a.Guestd, o.Inittab, o.Files); err != nil {
			close(vm.exited)
			return err
		}
	}
	var listeners []*net.UnixListener
	for _, name := range []string{"port", "qmp"} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(vm.dir, name)})
		if err != nil {
			close(vm.exited)
			return err
		}
		defer l.Close()
		l.SetDeadline(time.Now().Add(limit))
		listeners = append(listeners, l)
	}
	out, err := os.Create(filepath.Join(vm.dir, "qemu.log"))
	if err != nil {
		close(vm.exited)
		return err
	}
	defer out.Close()
	vm.cmd = exec.Command("qemu-system-x86_64", vm.args(o, accel, a.Kernel, initrd)...)
	vm.cmd.Stdout, vm.cmd.Stderr = out, out
	if err := vm.cmd.Start(); err != nil {
		close(vm.exited)
		return err
	}
	go func() {
		vm.exitErr = vm.cmd.Wait()
		// A listener that waits for a dead QEMU would wait for its deadline.
		for _, l := range listeners {
			l.SetDeadline(time.Unix(1, 0))
		}
		close(vm.exited)
	}()
	if vm.port, err = listeners[0].Accept(); err != nil {
		return fmt.Errorf("QEMU does not start: %w", err)
	}
	q, err := listeners[1].Accept()
	if err != nil {
		return fmt.Errorf("QEMU does not start: %w", err)
	}
	if vm.qmp, err = newQMP(q); err != nil {
		return err
	}
	vm.reading.Add(1)
	go vm.read()
	return vm.waitHello(limit)
}

// args are QEMU's arguments. Those for the shares and the agents are as docs/guests.md has them.
func (vm *VM) args(o Options, accel, kernel, initrd string) []string {
	mem := fmt.Sprint(cmp.Or(o.MemoryMB, 512), "M")
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none",
		"-M", "q35", "-smp", "1", "-m", mem,
		"-object", "memory-backend-memfd,id=mem,size=" + mem + ",share=on", "-numa", "node,memdev=mem",
		"-kernel", kernel, "-serial", "file:" + filepath.Join(vm.dir, "console"),
		"-chardev", "socket,id=qmp,path=" + filepath.Join(vm.dir, "qmp"), "-mon", "chardev=qmp,mode=control",
		"-chardev", "socket,id=port,path=" + filepath.Join(vm.dir, "port"),
		"-device", "virtio-serial-pci", "-device", "virtserialport,chardev=port,name=" + wire.PortName,
	}
	boot := "console=ttyS0 quiet panic=0"
	if o.Root == "" {
		args = append(args, "-initrd", initrd)
	} else {
		boot += " root=" + o.Root + " rootfstype=virtiofs rw init=/lib/systemd/systemd systemd.show_status=0"
	}
	args = append(args, "-append", boot)
	args = append(args, accelArgs(accel)...)
	for i, name := range slices.Sorted(maps.Keys(o.Ports)) {
		args = append(args, "-chardev", fmt.Sprintf("socket,id=agent%d,path=%s,reconnect=1", i, o.Ports[name]),
			"-device", fmt.Sprintf("virtserialport,chardev=agent%d,name=%s", i, name))
	}
	for i, s := range o.Shares {
		device := "vhost-user-fs-pci,"
		if s.Hotplug {
			args = append(args, "-device", fmt.Sprintf("pcie-root-port,id=slot%d,chassis=%d", i, i+1))
			device += fmt.Sprintf("id=dev%d,bus=slot%d,", i, i)
		}
		device += fmt.Sprintf("queue-size=1024,chardev=fs%d,tag=%s", i, s.Tag)
		if s.Queues > 0 {
			device += fmt.Sprintf(",num-request-queues=%d", s.Queues)
		}
		args = append(args, "-chardev", fmt.Sprintf("socket,id=fs%d,path=%s", i, s.Socket), "-device", device)
	}
	return args
}

// console returns the end of what the guest's kernel wrote.
func (vm *VM) console() string { return tailOf(filepath.Join(vm.dir, "console")) }

func (vm *VM) log() string { return tailOf(filepath.Join(vm.dir, "qemu.log")) }

func tailOf(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4096):])
}

// waitHello waits for the guest to come up.
func (vm *VM) waitHello(limit time.Duration) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	look := time.NewTicker(500 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case <-vm.hello:
			return nil
		case <-look.C:
			if strings.Contains(vm.console(), "Kernel panic") {
				return fmt.Errorf("%w: kernel panic", ErrGone)
			}
		case <-vm.exited:
			return fmt.Errorf("%w: QEMU has ended: %v", ErrGone, vm.exitErr)
		case <-timer.C:
			return fmt.Errorf("%w: no word from it in %v", ErrGone, limit)
		}
	}
}

// read takes in what the guest says until the machine ends.
func (vm *VM) read() {
	defer vm.reading.Done()
	sc := bufio.NewScanner(vm.port)
	sc.Buffer(nil, 32<<20)
	for sc.Scan() {
		// A guest that is reset in the middle of a line leaves a part of it.
		line := sc.Bytes()
		if i := bytes.LastIndex(line, []byte(`{"hello"`)); i > 0 {
			line = line[i:]
		}
		var m wire.Message
		if err := json.Unmarshal(line, &m); err != nil {
			continue
		}
		vm.take(m)
	}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.gone = true
	vm.dropLocked()
}

// dropLocked ends every pending request: the guest that had them is no more.
func (vm *VM) dropLocked() {
	for id, c := range vm.pending {
		close(c)
		delete(vm.pending, id)
	}
	for id, c := range vm.watches {
		close(c)
		delete(vm.watches, id)
	}
}

func (vm *VM) take(m wire.Message) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if m.Hello != "" {
		vm.dropLocked()
		select {
		case vm.hello <- m.Hello:
		default:
		}
		return
	}
	if events := vm.watches[m.ID]; events != nil && len(m.Events) > 0 {
		for _, e := range m.Events {
			select {
			case events <- e:
			default:
				// Nobody reads; the test that wants them asserts what it gets.
			}
		}
		return
	}
	if c := vm.pending[m.ID]; c != nil {
		delete(vm.pending, m.ID)
		c <- m
	}
}

// request sends r and waits for the answer.
func (vm *VM) request(r wire.Request, limit time.Duration) (wire.Message, error) {
	answer := make(chan wire.Message, 1)
	vm.mu.Lock()
	if vm.gone {
		vm.mu.Unlock()
		return wire.Message{}, ErrGone
	}
	vm.next++
	r.ID = vm.next
	vm.pending[r.ID] = answer
	if len(r.Watch) > 0 {
		vm.watches[r.ID] = make(chan wire.Event, 1<<16)
	}
	b, err := json.Marshal(r)
	if err == nil {
		vm.port.SetWriteDeadline(time.Now().Add(limit))
		_, err = vm.port.Write(append(b, '\n'))
	}
	vm.mu.Unlock()
	if err != nil {
		return wire.Message{}, fmt.Errorf("send to the guest: %w", err)
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case m, ok := <-answer:
		if !ok {
			return m, ErrGone
		}
		m.ID = r.ID
		if m.Error != "" {
			return m, fmt.Errorf("guest: %s: %s", m.Error, m.Output)
		}
		return m, nil
	case <-timer.C:
		return wire.Message{}, fmt.Errorf("the guest does not answer in %v; console: %s", limit, vm.console())
	}
}

// kill ends the machine and removes its files.
func (vm *VM) kill() {
	if vm.cmd != nil && vm.cmd.Process != nil {
		// It may have ended by itself.
		_ = vm.cmd.Process.Kill()
	}
	<-vm.exited
	if vm.port != nil {
		vm.port.Close()
	}
	vm.reading.Wait()
	if vm.qmp != nil {
		vm.qmp.close()
	}
	os.RemoveAll(vm.dir)
}
