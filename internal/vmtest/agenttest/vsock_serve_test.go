package agenttest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/internal/vmtest"
)

// TestVsock: `heraldfs serve` and `watch` over vsock, in a guest that is its own peer: one whose CID is named, or that
// knows the token, hears; others are refused.
func TestVsock(t *testing.T) {
	vmtest.Need(t)
	xz := testenv.NeedTool(t, "xz")
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	assets, err := vmtest.FetchAssets()
	if err != nil {
		t.Fatal(err)
	}
	found, err := filepath.Glob(filepath.Join(filepath.Dir(assets.Kernel), "../lib/modules/*/kernel/net/vmw_vsock"))
	if err != nil || len(found) != 1 {
		t.Fatalf("modules: %v, %v", found, err)
	}
	files := map[string]string{"bin/heraldfs": filepath.Join(dir, "heraldfs")}
	for _, name := range vsockModules() {
		b, err := exec.Command(xz, "-dc", filepath.Join(found[0], name+".ko.xz")).Output()
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(t.TempDir(), name+".ko")
		if err := os.WriteFile(to, b, 0o600); err != nil {
			t.Fatal(err)
		}
		files["lib/"+name+".ko"] = to
	}
	vm := vmtest.Start(t, vmtest.Options{Files: files})
	for _, name := range vsockModules() {
		vm.Run("insmod /lib/" + name + ".ko")
	}
	vm.Run(`cd /tmp; mkdir src other; echo 0123456789abcdef > token; echo 0123456789abcdeX > wrong
		says() { i=0; until grep -q "$2" $1; do i=$((i+1)); test $i -lt 100; sleep 0.1; done; }
		heraldfs serve --listen 'vsock://:7433?cid=1' --root other=other src > named 2>&1 &
		heraldfs serve --listen 'vsock://:7434?cid=3' src > others 2>&1 &
		heraldfs serve --listen vsock://:7435 --token-file token src > secret 2>&1 &
		for log in named others secret; do says $log msg=listening || { cat $log; exit 1; }; done`)
	watch := func(args string) string {
		return vm.Run(`cd /tmp; rm -f out; touch out; (set +e; heraldfs watch --once --format=json ` + args + ` > out 2>&1; echo over >> out) &
			has() { i=0; until grep -q "$1" out; do i=$((i+1)); test $i -lt 100 || { cat out; exit 1; }; sleep 0.1; done; }
			has 'ready\|over'; echo x > src/f; echo x > other/g; has over; cat out; rm src/f other/g`)
	}
	for _, c := range []struct{ args, want string }{
		{"vsock://1:7433", `"path":"f"`},
		{"'vsock://1:7433?root=other'", `"path":"g"`},
		{"vsock://1:7434", "this peer may not subscribe"},
		{"vsock://1:7435", "server wants a token"},
		{"--token-file wrong vsock://1:7435", "does not know the token"},
		{"--token-file token vsock://1:7435", `"path":"f"`},
	} {
		if got := watch(c.args); !strings.Contains(got, c.want) {
			t.Errorf("watch %s: %s, want %s", c.args, got, c.want)
		}
	}
	if got := vm.Run("cat /tmp/others"); !strings.Contains(got, "reason=peer") {
		t.Errorf("the server that was meant for others does not say whom it refused:\n%s", got)
	}
}
