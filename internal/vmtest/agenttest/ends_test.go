package agenttest

// testEnds: the end of a file that the guest knows is heard wherever it is by then, and by however many
// names the guest has known it.
func testEnds(b *bed) {
	b.do("mkdir ends; cd ends; for i in 1 2 3 4 5; do echo x > f$i; done; ln f3 g3; ln f4 ../../outside/g4; mkdir ../unknown")
	b.vm.Run("ls -l /mnt/ends")
	w := b.vm.Watch(everything, "/mnt", "/mnt/ends", "/mnt/ends/f1", "/mnt/ends/f2", "/mnt/ends/f3", "/mnt/ends/f4", "/mnt/ends/f5")
	defer w.Close()
	for _, c := range []struct {
		script string
		want   []string
	}{
		{"mv ends/f1 ../outside/f1", []string{"ends MOVED_FROM f1", "ends/f1 MOVE_SELF"}},
		{"rm ../outside/f1", []string{"ends/f1 ATTRIB", "ends/f1 DELETE_SELF", "ends/f1 IGNORED"}},
		{"mv ends/f2 ../outside/f2", []string{"ends MOVED_FROM f2", "ends/f2 MOVE_SELF"}},
		{"mv ../outside/f2 ends/g2", []string{"ends MOVED_TO g2", "ends/f2 MOVE_SELF"}},
		{"rm ends/g2", []string{"ends/f2 ATTRIB", "ends/f2 DELETE_SELF", "ends/f2 IGNORED", "ends DELETE g2"}},
		{"mv ends/f3 ../outside/f3", []string{"ends MOVED_FROM f3", "ends/f3 MOVE_SELF"}},
		{"mv ends/g3 ../outside/g3", []string{"ends MOVED_FROM g3", "ends/f3 MOVE_SELF"}},
		{"rm ../outside/g3", []string{"ends/f3 ATTRIB"}},
		{"rm ../outside/f3", []string{"ends/f3 ATTRIB", "ends/f3 DELETE_SELF", "ends/f3 IGNORED"}},
		{"mv ends/f4 ../outside/f4", []string{"ends MOVED_FROM f4", "ends/f4 MOVE_SELF"}},
		{"rm ../outside/f4", []string{"ends/f4 ATTRIB"}},
		{"rm ../outside/g4", []string{"ends/f4 ATTRIB", "ends/f4 DELETE_SELF", "ends/f4 IGNORED"}},
		{"mv ends/f5 unknown/f5", []string{"ends MOVED_FROM f5", "ends/f5 MOVE_SELF"}},
		{"mv unknown/f5 unknown/g5", []string{"ends/f5 MOVE_SELF"}},
		{"rm unknown/g5", []string{"ends/f5 ATTRIB", "ends/f5 DELETE_SELF", "ends/f5 IGNORED"}},
	} {
		if c.script == "rm unknown/g5" {
			b.vm.Run("ls -l /mnt/unknown | grep -q g5") // and so it has a name in a directory that is known by now
		}
		b.do(c.script)
		b.sync()
		b.expect(c.script, b.fence(w), c.want...)
	}
}
