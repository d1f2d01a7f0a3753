package agenttest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/inotest"
	"github.com/heraldfs/heraldfs/internal/opgen"
	"github.com/heraldfs/heraldfs/internal/vmtest"
	"github.com/heraldfs/heraldfs/internal/vmtest/wire"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/notify/replay"
)

const (
	seeds      = 5
	operations = 500
)

// TestParity: watchers in the guest hear what native ones on the host hear, and who has heard of a change
// sees it.
func TestParity(t *testing.T) {
	b := newBed(t)
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			old := b.t
			b.t = t
			defer func() { b.t = old }()
			b.vm.Use(t)
			parity(b, b.host, "/mnt", uint64(seed), operations)
		})
	}
}

// compared is one seed: a directory of the share, watched on both sides.
type compared struct {
	*bed
	root   string // on the host
	guest  string
	gen    *opgen.Generator
	native *inotest.Recorder
}

// parity compares in a directory below host, which the guest has at guest.
func parity(b *bed, host, guest string, seed uint64, operations int) {
	name := fmt.Sprintf("seed-%d", seed)
	c := &compared{bed: b, root: filepath.Join(host, name), guest: filepath.Join(guest, name)}
	outside := filepath.Join(b.outside, name)
	if err := errors.Join(os.Mkdir(c.root, 0o755), os.Mkdir(outside, 0o755)); err != nil {
		b.t.Fatal(err)
	}
	var err error
	c.gen, err = opgen.New(opgen.Options{Root: c.root, Outside: outside, Seed: seed, Static: []string{"a", "a/deep", "b", "c"}})
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := c.gen.Run(context.Background(), 80, nil); err != nil {
		b.t.Fatal(err)
	}
	b.sync()
	paths := c.gen.Static()
	watched := map[int]bool{}
	for path, e := range c.gen.Tree() {
		if e.Mode.IsRegular() && !watched[e.File] && len(watched) < 24 {
			watched[e.File] = true
			paths = append(paths, path)
		}
	}
	c.native = inotest.New(b.t, inotest.Options{})
	labels := map[string]string{}
	var there []string
	for _, rel := range paths {
		c.native.Watch(filepath.Join(c.root, rel), rel, 0)
		at := filepath.Join(c.guest, rel)
		there, labels[at] = append(there, at), rel
	}
	w := b.vm.Watch(everything|unix.IN_DONT_FOLLOW, there...)
	defer w.Close()
	ops, err := c.gen.Run(context.Background(), operations, c.fresh)
	if err != nil {
		b.t.Fatal(err)
	}
	end := filepath.Join(c.root, "the-end")
	if err := os.Mkdir(end, 0o755); err != nil {
		b.t.Fatal(err)
	}
	native, heard := c.native.WaitFor("the-end"), records(w, labels)
	if len(native) < operations {
		b.t.Errorf("the native watches heard %d events of %d operations", len(native), operations)
	}
	if diff := inotest.Compare(native, heard); diff != "" {
		b.t.Errorf("native and guest differ:\n%s\nafter:\n%s", diff, list(ops))
	}
	if err := c.look(slices.Sorted(maps.Keys(c.gen.Tree()))...); err != nil {
		b.t.Error(err)
	}
	b.t.Logf("%d operations, %d events natively, %d in the guest", len(ops), len(native), len(heard))
}

func list(ops []opgen.Op) string {
	var s strings.Builder
	for _, op := range ops {
		fmt.Fprintf(&s, "%v\n", op)
	}
	return s.String()
}

// records are what w heard up to the end, in the form of inotest.
func records(w *vmtest.Watch, labels map[string]string) (out []inotest.Record) {
	numbers := map[uint32]uint32{}
	events := w.Until("the-end")
	for _, e := range events[:len(events)-1] {
		r := inotest.Record{Label: labels[e.Dir], Mask: notify.Mask(e.Mask), Name: string(e.Name)}
		if e.Cookie != 0 {
			if numbers[e.Cookie] == 0 {
				numbers[e.Cookie] = uint32(len(numbers) + 1)
			}
			r.Cookie = numbers[e.Cookie]
		}
		out = append(out, r)
	}
	return out
}

// fresh compares what the guest sees of an operation's places, once it is told, with what must be there.
func (c *compared) fresh(op opgen.Op) error {
	var places []string
	for _, rel := range []string{op.Path, op.To} {
		if rel != "" && !filepath.IsAbs(rel) {
			places = append(places, rel)
		}
	}
	if err := c.look(places...); err != nil {
		return fmt.Errorf("stale after %v: %w", op, err)
	}
	return nil
}

func (c *compared) look(rels ...string) error {
	var there []string
	for _, rel := range rels {
		there = append(there, filepath.Join(c.guest, rel))
	}
	var errs []error
	for i, got := range c.vm.LookAfter("/mnt", replay.SyncAttr, there...) {
		want, ok := c.gen.Lookup(rels[i])
		errs = append(errs, differs(rels[i], got, want, ok))
	}
	return errors.Join(errs...)
}

func differs(rel string, got wire.Look, want opgen.Entry, ok bool) error {
	types := map[os.FileMode]uint32{0: unix.S_IFREG, os.ModeDir: unix.S_IFDIR, os.ModeSymlink: unix.S_IFLNK}
	switch {
	case got.Error != "":
		return errors.New(got.Error)
	case !ok && got.Mode == 0:
		return nil
	case !ok || got.Mode&unix.S_IFMT != types[want.Mode.Type()]:
		return fmt.Errorf("%s has mode %o in the guest, must be %v (there: %t)", rel, got.Mode, want.Mode, ok)
	case want.Mode.Type() == os.ModeSymlink && got.Target != want.Target:
		return fmt.Errorf("%s leads to %q in the guest, must lead to %q", rel, got.Target, want.Target)
	case !want.Mode.IsRegular():
		return nil
	case got.Mode&0o777 != uint32(want.Mode.Perm()):
		return fmt.Errorf("%s has mode %o in the guest, must be %v", rel, got.Mode, want.Mode)
	case string(got.Content) != string(want.Content):
		return fmt.Errorf("%s has %d bytes %.20q in the guest, must have %d bytes %.20q", rel, len(got.Content), got.Content, len(want.Content), want.Content)
	}
	return nil
}
