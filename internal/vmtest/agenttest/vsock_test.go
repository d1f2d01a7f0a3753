package agenttest

import "strings"

// vsockModules are what a guest needs to talk to itself by vsock, each after those that it needs.
func vsockModules() []string {
	return []string{"vsock", "vmw_vsock_virtio_transport_common", "vsock_loopback"}
}

// testVsock: events come by vsock as well. There is none between this guest and the host, so that a relay in the guest takes
// what the agent says to the virtio-serial port; and the host's end is tried in the guest.
func testVsock(b *bed) {
	for _, m := range vsockModules() {
		b.vm.Run("insmod /lib/" + m + ".ko")
	}
	b.killAgent()
	b.vm.Run("guestd relay 7001 org.heraldfs.agent.0 > /tmp/relay 2>&1 & echo $! > /tmp/relay.pid; until grep -q listening /tmp/relay; do usleep 10000; done")
	w := b.vm.Watch(everything, "/mnt")
	for range 2 {
		b.startAgent("--connect", "vsock://1:7001")
		b.do("mkdir vsock; rmdir vsock")
		b.expect("by vsock", b.fence(w), "CREATE,ISDIR vsock", "DELETE,ISDIR vsock")
		b.killAgent()
	}
	w.Close()
	b.vm.Run("kill $(cat /tmp/relay.pid)")
	b.startAgent()
	// Both programs, with the host's confined (not in a namespace: an initramfs has no root that can be changed), and only
	// for the guest that is named.
	for _, c := range []struct{ cid, want string }{{"1", "msg=connected"}, {"3", "no connection to the host"}} {
		got := b.vm.Run(`mkdir -p /tmp/vsock
			heraldfs virtiofs --sandbox=chroot --socket /tmp/vsock.s --agent-listen 'vsock://:7003?cid=` + c.cid + `' /tmp/vsock > /tmp/host.log 2>&1 & host=$!
			until grep -q 'waiting for a virtual' /tmp/host.log; do kill -0 $host || { cat /tmp/host.log; exit 1; }; usleep 10000; done
			heraldfs-agent --connect vsock://1:7003 /mnt > /tmp/guest.log 2>&1 & guest=$!
			until grep -q '` + c.want + `' /tmp/guest.log; do usleep 10000; done
			kill $guest $host; wait $guest; wait $host; cat /tmp/host.log`)
		if refused := strings.Contains(got, "a channel was refused"); refused != (c.cid == "3") || !strings.Contains(got, "sandbox=chroot") {
			b.t.Errorf("vsock, for guest %s:\n%s", c.cid, got)
		}
	}
}
