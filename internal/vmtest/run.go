package vmtest

import (
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/heraldfs/heraldfs/internal/vmtest/wire"
)

// Use makes a subtest the one that failures are told to, until it ends.
func (vm *VM) Use(t testing.TB) {
	old := vm.t
	vm.t = t
	t.Cleanup(func() { vm.t = old })
}

// Command runs argv in the guest and returns what it printed on both outputs, and its exit status.
func (vm *VM) Command(limit time.Duration, argv ...string) (output string, exit int, err error) {
	m, err := vm.request(wire.Request{Argv: argv, Seconds: limit.Seconds()}, limit+5*time.Second)
	return string(m.Output), m.Exit, err
}

// Run runs a shell script in the guest and fails the test unless it succeeds.
func (vm *VM) Run(script string) string {
	vm.t.Helper()
	out, exit, err := vm.Command(commandTimeout, "sh", "-ec", script)
	if err != nil || exit != 0 {
		vm.t.Fatalf("guest: %s\nexit %d, %v\n%s", script, exit, err, out)
	}
	return strings.TrimRight(out, "\n")
}

// Mount mounts a tag, with options if any, on a new directory.
func (vm *VM) Mount(tag, dir string, options ...string) {
	vm.t.Helper()
	o := ""
	if len(options) > 0 {
		o = "-o " + strings.Join(options, ",")
	}
	vm.Run(fmt.Sprintf("mkdir -p %s; mount -t virtiofs %s %s %s", dir, o, tag, dir))
}

// Watch is an inotify instance in the guest.
type Watch struct {
	vm     *VM
	id     uint64
	events chan wire.Event
}

// Watch watches directories for mask. When it returns the guest listens.
func (vm *VM) Watch(mask uint32, dirs ...string) *Watch {
	vm.t.Helper()
	m, err := vm.request(wire.Request{Watch: dirs, Mask: mask}, commandTimeout)
	if err != nil {
		vm.t.Fatal(err)
	}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return &Watch{vm: vm, id: m.ID, events: vm.watches[m.ID]}
}

// Until returns the events up to and with the one for a name, or fails the test when that does not come.
func (w *Watch) Until(name string) []wire.Event {
	w.vm.t.Helper()
	timer := time.NewTimer(commandTimeout)
	defer timer.Stop()
	var got []wire.Event
	for {
		select {
		case e, ok := <-w.events:
			if !ok {
				w.vm.t.Fatalf("the guest has gone after %v", got)
			}
			got = append(got, e)
			if string(e.Name) == name {
				return got
			}
		case <-timer.C:
			w.vm.t.Fatalf("no event for %q; got %v", name, got)
		}
	}
}

// ReadAttr reads an extended attribute of a directory in the guest, for what comes of it.
func (vm *VM) ReadAttr(dir, attr string) error {
	_, err := vm.request(wire.Request{Sync: dir, Attr: attr}, 2*commandTimeout)
	return err
}

// Look tells what there is at paths in the guest.
func (vm *VM) Look(paths ...string) []wire.Look {
	vm.t.Helper()
	return vm.LookAfter("", "", paths...)
}

// LookAfter is ReadAttr, which must succeed, and then Look, in one request.
func (vm *VM) LookAfter(dir, attr string, paths ...string) []wire.Look {
	vm.t.Helper()
	m, err := vm.request(wire.Request{Sync: dir, Attr: attr, Look: paths}, 2*commandTimeout)
	if err != nil || len(m.Looks) != len(paths) {
		vm.t.Fatalf("look: %d answers of %d, %v", len(m.Looks), len(paths), err)
	}
	return m.Looks
}

// Close ends the watch.
func (w *Watch) Close() {
	w.vm.t.Helper()
	if _, err := w.vm.request(wire.Request{Unwatch: w.id}, commandTimeout); err != nil {
		w.vm.t.Error(err)
	}
	w.vm.mu.Lock()
	delete(w.vm.watches, w.id)
	w.vm.mu.Unlock()
}

// Reset presses the reset button and waits until the guest is up again.
func (vm *VM) Reset() {
	vm.t.Helper()
	vm.QMP("system_reset")
	if err := vm.waitHello(bootTimeout); err != nil {
		vm.t.Fatalf("after a reset: %v\nconsole: %s", err, vm.console())
	}
}

// QMP executes a command of QEMU's monitor without arguments, such as stop and cont.
func (vm *VM) QMP(command string) {
	vm.t.Helper()
	vm.monitor(command, nil, "")
}

// Detach unplugs the share with that index and lets its chardev go. What is mounted in the guest fails
// with ENOTCONN from then on.
func (vm *VM) Detach(i int) {
	vm.t.Helper()
	vm.monitor("device_del", map[string]any{"id": fmt.Sprint("dev", i)}, "DEVICE_DELETED")
	vm.monitor("chardev-remove", map[string]any{"id": fmt.Sprint("fs", i)}, "")
}

// ResetWithout unplugs the share with that index although the guest does not let it go, because requests to it will never be answered:
// by a reset. When it returns the guest is up again.
func (vm *VM) ResetWithout(i int) {
	vm.t.Helper()
	vm.monitor("device_del", map[string]any{"id": fmt.Sprint("dev", i)}, "")
	vm.monitor("system_reset", nil, "DEVICE_DELETED")
	vm.monitor("chardev-remove", map[string]any{"id": fmt.Sprint("fs", i)}, "")
	if err := vm.waitHello(bootTimeout); err != nil {
		vm.t.Fatalf("after a reset: %v\nconsole: %s", err, vm.console())
	}
}

// Attach plugs a share in, in the place of one that was detached.
func (vm *VM) Attach(i int, s Share) {
	vm.t.Helper()
	addr := map[string]any{"type": "unix", "data": map[string]any{"path": s.Socket}}
	backend := map[string]any{"type": "socket", "data": map[string]any{"addr": addr, "server": false}}
	vm.monitor("chardev-add", map[string]any{"id": fmt.Sprint("fs", i), "backend": backend}, "")
	vm.monitor("device_add", map[string]any{"driver": "vhost-user-fs-pci", "id": fmt.Sprint("dev", i), "queue-size": 1024,
		"num-request-queues": max(s.Queues, 1), "chardev": fmt.Sprint("fs", i), "tag": s.Tag, "bus": fmt.Sprint("slot", i)}, "")
}

func (vm *VM) monitor(command string, args any, event string) {
	vm.t.Helper()
	if err := vm.qmp.execute(command, args, event); err != nil {
		vm.t.Fatalf("QMP %s: %v; log: %s", command, err, vm.log())
	}
}

// qmp is QEMU's monitor protocol: JSON objects, ours with "execute", its with "return", "error" or "event".
type qmp struct {
	c   net.Conn
	dec *json.Decoder
}

func newQMP(c net.Conn) (*qmp, error) {
	q := &qmp{c: c, dec: json.NewDecoder(c)}
	c.SetDeadline(time.Now().Add(commandTimeout))
	var greeting map[string]any
	if err := q.dec.Decode(&greeting); err != nil {
		return nil, fmt.Errorf("QMP greeting: %w", err)
	}
	return q, q.execute("qmp_capabilities", nil, "")
}

// execute waits for the answer, and for an event if one is named.
func (q *qmp) execute(command string, args any, event string) error {
	q.c.SetDeadline(time.Now().Add(commandTimeout))
	request := struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, args}
	if err := json.NewEncoder(q.c).Encode(request); err != nil {
		return err
	}
	for answered := false; !answered || event != ""; {
		var m struct {
			Return any
			Error  *struct{ Desc string }
			Event  string
		}
		if err := q.dec.Decode(&m); err != nil {
			return err
		}
		switch {
		case m.Error != nil:
			return fmt.Errorf("%s", m.Error.Desc)
		case m.Event == "":
			answered = true
		case m.Event == event:
			event = ""
		}
	}
	return nil
}

func (q *qmp) close() { q.c.Close() }
