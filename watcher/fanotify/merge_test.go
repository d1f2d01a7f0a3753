package fanotify

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/notify"
)

// TestKernelMerges shows what docs/semantics.md says is lost in a burst: the records that the kernel
// queues for a group that nobody reads.
func TestKernelMerges(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.Fanotify)
	for _, tt := range []struct {
		name string
		do   func(in func(string) string) error
		want []string
	}{
		{"order and number", func(in func(string) string) error {
			return errors.Join(os.Chmod(in("a"), 0o600), os.Chmod(in("b"), 0o600), os.Truncate(in("a"), 1), os.Chmod(in("a"), 0o640))
		}, []string{"MODIFY,ATTRIB a", "ATTRIB b"}},
		{"there and back", func(in func(string) string) error {
			return errors.Join(os.Rename(in("a"), in("x")), os.Rename(in("x"), in("a")), os.Rename(in("a"), in("x")), os.Rename(in("x"), in("a")))
		}, []string{"RENAME a x", "RENAME x a"}},
		{"a directory's ATTRIB by two names", func(in func(string) string) error {
			return errors.Join(os.Chmod(in("d"), 0o700), os.Rename(in("d"), in("e")), os.Chmod(in("e"), 0o755))
		}, []string{"ATTRIB,ISDIR .", "RENAME,ISDIR d e"}},
		{"a link where the file was before", func(in func(string) string) error {
			return errors.Join(os.Truncate(in("a"), 1), os.Rename(in("a"), in("x")), os.Link(in("x"), in("a")))
		}, []string{"MODIFY,CREATE a", "RENAME a x", "ATTRIB "}},
		{"link counts", func(in func(string) string) error {
			return errors.Join(os.Link(in("a"), in("x")), os.Rename(in("b"), in("x")))
		}, []string{"ATTRIB ", "CREATE x", "RENAME b x"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := testenv.Tmpfs(t)
			in := func(name string) string { return filepath.Join(dir, name) }
			err := errors.Join(os.WriteFile(in("a"), nil, 0o644), os.WriteFile(in("b"), nil, 0o644), os.Mkdir(in("d"), 0o755))
			if err != nil {
				t.Fatal(err)
			}
			fd, err := unix.FanotifyInit(unix.FAN_CLOEXEC|unix.FAN_NONBLOCK|unix.FAN_REPORT_DFID_NAME_TARGET, unix.O_RDONLY)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			const events = unix.FAN_CREATE | unix.FAN_RENAME | unix.FAN_ATTRIB | unix.FAN_MODIFY | unix.FAN_ONDIR
			if err := errors.Join(unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, events, unix.AT_FDCWD, dir), tt.do(in)); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 8192)
			n, err := unix.Read(fd, buf)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			p := newParser()
			for buf = buf[:n]; len(buf) > 0; {
				var r notify.Raw
				if r, buf, err = p.next(buf); err != nil {
					t.Fatal(err)
				}
				text := r.Mask.String() + " " + r.Name
				if r.NewName != "" {
					text += " " + r.NewName
				}
				got = append(got, text)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("queued (-want +got):\n%s", d)
			}
		})
	}
}
