package agenttest

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/vmtest"
)

// testBackendKilled: the back-end is killed while the guest writes. What the guest was told is done is on the host; what it waits for then
// never comes, and its kernel does not let the device go before, so that a reset has to follow. QEMU itself goes on.
func testBackendKilled(b *bed) {
	b.do("mkdir killed")
	b.vm.Run(`cd /mnt/killed; (i=0; while echo $i > $i; do i=$((i+1)); echo $i > /tmp/told.new; mv /tmp/told.new /tmp/told; done) > /tmp/writer 2>&1 &
		until [ "$(cat /tmp/told)" -gt 20 ] 2>/dev/null; do usleep 10000; done`)
	if err := unix.Kill(b.server(), unix.SIGKILL); err != nil {
		b.t.Fatal(err)
	}
	if err := b.cmd.Wait(); err == nil || !strings.Contains(b.said.String(), "killed") {
		b.t.Errorf("heraldfs virtiofs ended with %v and said\n%s", err, tail(b.said.String()))
	}
	var told int
	if _, err := fmt.Sscan(b.vm.Run("cat /tmp/told /tmp/writer"), &told); err != nil {
		b.t.Fatal(err)
	}
	for i := range told {
		if got, err := os.ReadFile(b.path(fmt.Sprint("killed/", i))); err != nil || string(got) != fmt.Sprintln(i) {
			b.t.Fatalf("the guest was told that %d of %d is written: %q, %v", i, told, got, err)
		}
	}
	b.start()
	b.vm.ResetWithout(0)
	b.vm.Attach(0, vmtest.Share{Socket: b.socket, Tag: "share", Hotplug: true})
	b.vm.Run("mkdir -p /mnt; until mount -t virtiofs share /mnt; do usleep 50000; done")
	b.startAgent()
	w := b.vm.Watch(everything, "/mnt")
	defer w.Close()
	b.do("mkdir d; rmdir d")
	b.expect("after all", b.fence(w), "CREATE,ISDIR d", "DELETE,ISDIR d")
}
