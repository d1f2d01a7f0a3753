package vmtest

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// TestDocumented: every option of QEMU in docs/guests.md is one that guests are booted with here.
func TestDocumented(t *testing.T) {
	docs, err := os.ReadFile("../../docs/guests.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(docs), "## QEMU\n")
	text, _, _ = strings.Cut(text, "\n## systemd")
	share := Share{Socket: "/run/vm1-src.sock", Tag: "src"}
	o := Options{MemoryMB: 2048, Shares: []Share{share}, Ports: map[string]string{"org.heraldfs.agent.0": "/run/vm1-agent.sock"}}
	vm := &VM{}
	args := vm.args(o, "kvm", "kernel", "initrd")
	o.Shares[0].Hotplug = true
	args = append(args, vm.args(o, "kvm", "kernel", "initrd")...)
	options := 0
	for line := range strings.Lines(text) {
		line, indented := strings.CutPrefix(line, "    ")
		words := strings.Fields(strings.ReplaceAll(line, "2G", "2048M"))
		for i, w := range words {
			if !indented || !strings.HasPrefix(w, "-") || strings.HasPrefix(w, "--") || i+1 == len(words) {
				continue
			}
			if w != "-accel" && w != "-cpu" && w != "-m" && w != "-object" && w != "-numa" && w != "-chardev" && w != "-device" {
				continue
			}
			options++
			if !slices.ContainsFunc(pairs(args), func(p [2]string) bool { return p == [2]string{w, words[i+1]} }) {
				t.Errorf("no guest is booted with %s %s", w, words[i+1])
			}
		}
	}
	if options < 12 {
		t.Errorf("%d options were found", options)
	}
}

func pairs(args []string) (p [][2]string) {
	for i := range args[1:] {
		p = append(p, [2]string{args[i], args[i+1]})
	}
	return p
}
