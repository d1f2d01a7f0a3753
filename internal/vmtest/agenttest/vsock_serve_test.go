package agenttest

import "strings"

// testVsockServe: `heraldfs serve` and `watch` over vsock, in a guest that is its own peer: one whose CID is named, or that
// knows the token, hears; others are refused. testVsock has loaded the modules.
func testVsockServe(b *bed) {
	vm := b.vm
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
			b.t.Errorf("watch %s: %s, want %s", c.args, got, c.want)
		}
	}
	if got := vm.Run("cat /tmp/others; killall heraldfs"); !strings.Contains(got, "reason=peer") {
		b.t.Errorf("the server that was meant for others does not say whom it refused:\n%s", got)
	}
}
