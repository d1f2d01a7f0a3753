package agenttest

import (
	"strings"
	"testing"

	"github.com/heraldfs/heraldfs/internal/vmtest"
)

// inittab is as docs/guests.md has it: the agent is started before there is anything to be mounted, and again if it ends.
const inittab = `::sysinit:/bin/busybox mount -t proc proc /proc
::sysinit:/bin/busybox mount -t sysfs sysfs /sys
::sysinit:/bin/busybox mount -t devtmpfs devtmpfs /dev
::respawn:/bin/guestd
::respawn:/bin/heraldfs-agent /mnt
`

// TestBusyboxInit: busybox's init keeps the agent running.
func TestBusyboxInit(t *testing.T) {
	b, o := newHost(t, func(string) {})
	o.Inittab = inittab
	b.vm = vmtest.Start(t, o)
	if got := b.vm.Run("cat /proc/1/comm"); got != "init" {
		t.Fatalf("the first process is %s", got)
	}
	b.vm.Mount("share", "/mnt")
	b.attached()
	w := b.vm.Watch(everything, "/mnt")
	defer w.Close()
	b.do("mkdir d; rmdir d")
	b.expect("by the first agent", b.fence(w), "CREATE,ISDIR d", "DELETE,ISDIR d")
	old := b.vm.Run("pidof heraldfs-agent")
	b.vm.Run("kill -9 " + old)
	b.do("mkdir d")
	b.vm.Run("until p=$(pidof heraldfs-agent) && [ $p != " + old + " ]; do usleep 10000; done")
	b.attached()
	b.do("rmdir d")
	b.expect("by the next", b.fence(w), "CREATE,ISDIR d", "DELETE,ISDIR d")
}

// testInitramfs: the root is the initramfs here, which cannot be left. `heraldfs virtiofs` says so and confines itself otherwise.
func testInitramfs(b *bed) {
	got := b.vm.Run(`mkdir -p /tmp/share
heraldfs virtiofs --socket /tmp/s /tmp/share > /tmp/v.log 2>&1 & p=$!
until grep -q 'waiting for' /tmp/v.log || ! kill -0 $p; do usleep 20000; done
kill $p; wait $p; cat /tmp/v.log; ls /tmp/s 2>&1 || true`)
	for _, want := range []string{`msg="no namespaces" why=`, "pivot_root: invalid argument", "sandbox=landlock", "/tmp/s: No such file"} {
		if !strings.Contains(got, want) {
			b.t.Errorf("no %s in\n%s", want, got)
		}
	}
}
