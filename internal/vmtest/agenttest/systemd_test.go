package agenttest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/internal/vmtest"
)

// unitConfigs are what a user writes for the units, and the name of the file. The first two are the packaged examples.
var unitConfigs = map[string]string{
	"virtiofs-data.conf": "", "data.conf": "",
	"serve-data.conf": "DIR=/srv/data\n", "serve-later.conf": "DIR=/srv/data\n",
}

// TestSystemd: in a guest whose first process is systemd, and whose root comes from heraldfs virtiofs, every unit that make
// install installs is started, killed, started again by systemd, and stopped; the agent's is there from the boot on.
func TestSystemd(t *testing.T) {
	testenv.NeedTool(t, "make", "tar", "dpkg-deb")
	b, o := newHost(t, func(string) {})
	root := testenv.Tmpfs(t)
	if err := vmtest.SystemdRoot(root); err != nil {
		t.Fatal(err)
	}
	installed(t, root)
	said := &output{}
	socket := b.socket + "-root"
	// Nothing but the guest changes it.
	server := b.serve(said, "--socket", socket, "--cache=always", root)
	t.Cleanup(func() { b.end(server, said) })
	o.Root, o.Files = "root", nil
	o.Shares = []vmtest.Share{{Socket: b.socket, Tag: "src"}, {Socket: socket, Tag: "root"}}
	b.vm = vmtest.Start(t, o)
	for _, c := range []struct {
		name string
		run  func(b *bed)
	}{
		{"booted", testSystemdBooted}, {"agent", testAgentUnit}, {"virtiofs", testVirtiofsUnit}, {"mount", testMountUnit},
		{"serve", testServeUnit}, {"socket", testServeSocket},
	} {
		if !t.Run(c.name, func(t *testing.T) {
			old := b.t
			b.t = t
			defer func() { b.t = old }()
			b.vm.Use(t)
			c.run(b)
		}) {
			t.Fatal(b.vm.Run("journalctl --no-pager -n 80 -u 'heraldfs*' -u mnt.mount"))
		}
	}
}

// installed puts into root what make install installs, the line of docs/guests.md for /etc/fstab, and the units' files.
func installed(t *testing.T, root string) {
	t.Helper()
	if out, err := exec.Command("make", "-C", "../../..", "install", "DESTDIR="+root, "PREFIX=/usr").CombinedOutput(); err != nil {
		t.Fatalf("make install: %v\n%s", err, out)
	}
	docs, err := os.ReadFile("../../../docs/guests.md")
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^    (src +/mnt +virtiofs .*)$`).FindSubmatch(docs)
	if line == nil {
		t.Fatal("docs/guests.md has no line for /etc/fstab")
	}
	files := map[string]string{"fstab": string(line[1]) + "\ntmpfs /srv tmpfs defaults 0 0\n"}
	for name, text := range unitConfigs {
		if text == "" {
			example, err := os.ReadFile(filepath.Join(root, "usr/share/doc/heraldfs", strings.ReplaceAll(name, "data", "example")))
			if err != nil {
				t.Fatal(err)
			}
			text = string(example)
		}
		files["heraldfs/"+name] = text
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("chroot", root, "systemctl", "enable", "heraldfs-agent@mnt").CombinedOutput(); err != nil {
		t.Fatalf("systemctl enable: %v\n%s", err, out)
	}
}

// is compares what systemd says of a unit; an inactive one may have forgotten how often it was started again.
func (b *bed) is(unit, state string, restarts int) {
	b.t.Helper()
	got := map[string]string{}
	for line := range strings.Lines(b.vm.Run("systemctl show -p ActiveState,Result,NRestarts,Type " + unit)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		got[k] = v
	}
	if got["ActiveState"] != state || got["Result"] != "success" || got["Type"] != "notify" || state == "active" && got["NRestarts"] != fmt.Sprint(restarts) {
		b.t.Errorf("%s: %v, want %s and %d restarts", unit, got, state, restarts)
	}
}

// killMain kills a unit's main process, and returns when systemd has started it again and it is ready.
func (b *bed) killMain(unit string) {
	b.t.Helper()
	b.vm.Run(fmt.Sprintf(`n=$(systemctl show -P NRestarts %[1]s); kill -9 $(systemctl show -P MainPID %[1]s)
		until [ $(systemctl show -P NRestarts %[1]s) = $((n+1)) ] && systemctl -q is-active %[1]s; do usleep 50000; done`, unit))
}

// stopped stops a unit, which ends without an error, and leaves no process.
func (b *bed) stopped(unit string) {
	b.t.Helper()
	b.vm.Run("systemctl stop " + unit)
	b.is(unit, "inactive", 0)
	if got := b.vm.Run("pidof heraldfs heraldfs-agent || true"); got != "" {
		b.t.Errorf("%s: processes %s are left", unit, got)
	}
}

func testSystemdBooted(b *bed) {
	got := b.vm.Run("cat /proc/1/comm; grep -c '^root / virtiofs' /proc/mounts; systemctl is-active mnt.mount; systemctl --failed --plain --no-legend; mkdir -p /srv/data /srv/guest/data")
	if want := "systemd\n1\nactive"; got != want {
		b.t.Errorf("the guest says %q, want %q", got, want)
	}
}

// testAgentUnit: what happens on the host is heard with the agent that systemd runs, and by the next one after it was killed.
func testAgentUnit(b *bed) {
	const unit = "heraldfs-agent@mnt"
	b.attached() // by the boot: it is enabled
	b.is(unit, "active", 0)
	w := b.vm.Watch(everything, "/mnt")
	defer w.Close()
	b.do("mkdir d; rmdir d")
	b.expect("by the first agent", b.fence(w), "CREATE,ISDIR d", "DELETE,ISDIR d")
	b.killMain(unit)
	b.do("mkdir d; rmdir d")
	b.attached()
	b.expect("by the next", b.fence(w), "CREATE,ISDIR d", "DELETE,ISDIR d")
	b.is(unit, "active", 1)
	b.stopped(unit)
	if said := b.said.String(); !strings.Contains(said, "the agent ends") {
		b.t.Errorf("the host was not told of the end:\n%s", tail(said))
	}
	// It brings its mount, goes with it, and comes with it.
	b.vm.Run("systemctl stop mnt.mount; systemctl start " + unit + "; grep -q ' /mnt virtiofs' /proc/mounts")
	b.attached()
	b.vm.Run("systemctl stop mnt.mount; ! grep -q ' /mnt ' /proc/mounts")
	b.is(unit, "inactive", 0)
	b.vm.Run("systemctl start mnt.mount; until systemctl -q is-active " + unit + "; do usleep 50000; done")
	b.attached()
	b.stopped(unit)
}

// testVirtiofsUnit: the host's side, in the guest.
func testVirtiofsUnit(b *bed) {
	const unit, ask = "heraldfs-virtiofs@data", "guestd vhost /run/heraldfs/data.sock; stat -c '%a %G' /run/heraldfs/data.sock"
	b.vm.Run("systemctl start " + unit)
	b.is(unit, "active", 0)
	again := func() {
		b.t.Helper()
		if got := b.vm.Run(ask); !strings.HasSuffix(got, "\n660 kvm") {
			b.t.Errorf("the socket: %q", got)
		}
	}
	again()
	if got := b.vm.Run("journalctl --no-pager -u " + unit); !strings.Contains(got, "sandbox=namespace") || strings.Contains(got, "level=WARN") {
		b.t.Errorf("it said\n%s", got)
	}
	b.killMain(unit)
	again()
	// The process that serves is a child of the one that systemd knows.
	b.vm.Run("kill -9 $(cat /proc/$(systemctl show -P MainPID " + unit + ")/task/*/children); until [ $(systemctl show -P NRestarts " + unit + ") = 2 ]; do usleep 50000; done; systemctl start " + unit)
	again()
	b.stopped(unit)
	b.vm.Run("! test -e /run/heraldfs/data.sock")
}

// testMountUnit: a mount is there for everybody while its unit is active, and works after a kill.
func testMountUnit(b *bed) {
	const unit = "heraldfs@data"
	b.vm.Run("systemctl start " + unit)
	for restarts := range 2 {
		b.is(unit, "active", restarts)
		w := b.vm.Watch(everything, "/srv/guest/data")
		b.vm.Run("mkdir /srv/data/d; rmdir /srv/data/d; mkdir /srv/data/end; rmdir /srv/data/end")
		got := show(w.Until("end"))
		b.expect("in the mount", got[:len(got)-1], "srv/guest/data CREATE,ISDIR d", "srv/guest/data DELETE,ISDIR d")
		w.Close()
		if got := b.vm.Run("grep ' /srv/guest/data ' /proc/mounts; touch /srv/guest/data/f 2>&1 || true"); !strings.Contains(got, "fuse.heraldfs ro,") || !strings.Contains(got, "Read-only") {
			b.t.Errorf("--read-only of the example: %q", got)
		}
		if restarts == 0 {
			b.killMain(unit)
		}
	}
	b.stopped(unit)
	b.vm.Run("! grep -q /srv/guest/data /proc/mounts")
}

// hear has somebody subscribe, who hears of a change.
func (b *bed) hear(url string) {
	b.t.Helper()
	got := b.vm.Run(`rm -f /tmp/out; heraldfs watch --once --format=json ` + url + ` > /tmp/out 2>&1 & until grep -q '"type":"ready"' /tmp/out; do usleep 20000; done
		echo x > /srv/data/f; wait $!; rm /srv/data/f; cat /tmp/out`)
	if !strings.Contains(got, `"path":"f"`) {
		b.t.Errorf("watch %s: %s", url, got)
	}
}

func testServeUnit(b *bed) {
	const unit, url = "heraldfs-serve@data", "unix:///run/heraldfs-serve/data/heraldfs.sock"
	b.vm.Run("systemctl start " + unit)
	b.is(unit, "active", 0)
	b.hear(url)
	pid := b.vm.Run("systemctl show -P MainPID " + unit)
	b.vm.Run("systemctl reload " + unit)
	if got := b.vm.Run("systemctl show -P MainPID " + unit); got != pid {
		b.t.Errorf("process %s after a reload, was %s", got, pid)
	}
	b.killMain(unit)
	b.hear(url)
	if got := b.vm.Run("stat -c %a /var/lib/heraldfs-serve/data"); got != "700" {
		b.t.Errorf("the journal's directory has mode %s", got)
	}
	b.stopped(unit)
}

// testServeSocket: systemd listens, and starts the server with the first subscriber.
func testServeSocket(b *bed) {
	const unit = "heraldfs-serve@later"
	b.vm.Run("systemctl start " + unit + ".socket; ! systemctl -q is-active " + unit)
	b.hear("unix:///run/heraldfs-serve-later.sock")
	b.is(unit, "active", 0)
	b.vm.Run("systemctl stop " + unit + ".socket")
	b.stopped(unit)
}
