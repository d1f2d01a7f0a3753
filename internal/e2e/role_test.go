package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/notify"
)

// roleEnv tells the test binary to be a client instead.
const roleEnv = "HERALDFS_E2E_ROLE"

// play is the client named role; its arguments are those of the program.
func play(role string) int {
	err := fmt.Errorf("no role %q", role)
	if role == "fanotify" {
		err = fanotifyClient(os.Stdout, os.Args[1], os.Args[2:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	return 0
}

// fanotifyClient marks directories below top and prints what it hears as "MASK dir/name".
func fanotifyClient(out io.Writer, top string, dirs []string) error {
	fd, err := unix.FanotifyInit(unix.FAN_CLOEXEC|unix.FAN_CLASS_NOTIF|unix.FAN_REPORT_DFID_NAME, unix.O_RDONLY)
	if err != nil {
		return fmt.Errorf("fanotify_init: %w", err)
	}
	defer unix.Close(fd)
	names := make(map[string]string)
	for _, dir := range append([]string{"."}, dirs...) {
		path := filepath.Join(top, dir)
		mask := notify.Create | notify.Delete | notify.Moves | notify.Modify | notify.Attrib | notify.CloseWrite
		if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD, uint64(mask)|unix.FAN_ONDIR|unix.FAN_EVENT_ON_CHILD, unix.AT_FDCWD, path); err != nil {
			return fmt.Errorf("fanotify_mark %s: %w", path, err)
		}
		// As fanotify asks for it: an identity that need not be good for opening.
		const handleFID = 0x200
		h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, handleFID)
		if err != nil {
			return fmt.Errorf("name_to_handle_at %s: %w", path, err)
		}
		names[string(h.Bytes())] = dir
	}
	fmt.Fprintln(out, "ready")
	buf := make([]byte, 1<<16)
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		for b := buf[:n]; len(b) >= unix.FAN_EVENT_METADATA_LEN; {
			size := binary.NativeEndian.Uint32(b)
			mask := notify.Mask(binary.NativeEndian.Uint64(b[8:]))
			// struct fanotify_event_info_fid: header (4), fsid (8), handle_bytes, handle_type, f_handle, name
			info := b[unix.FAN_EVENT_METADATA_LEN:size]
			length := binary.NativeEndian.Uint32(info[12:])
			handle, name := info[20:20+length], info[20+length:]
			fmt.Fprintf(out, "%s %s\n", mask, filepath.Join(names[string(handle)], string(bytes.TrimRight(name, "\x00"))))
			b = b[size:]
		}
	}
}

// A fanotify program with marks on directories, in a guest's mount namespace.
func TestFanotifyClient(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE, testenv.Fanotify)
	self, err := os.Executable()
	check(t, err)
	t.Setenv(roleEnv, "fanotify")
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			dirs := place(t, "src/sub", "mnt", "native/plain/sub")
			src, mnt, plain := filepath.Dir(dirs[0]), dirs[1], filepath.Dir(dirs[2])
			d := serve(t, src, mnt, "--watcher="+backend)
			cmd, _ := inNamespace(t, mnt, self, mnt, "sub")
			guest := start(t, cmd, "ready")
			native := start(t, exec.Command(self, plain, "sub"), "ready")
			tell(t, false, plain, native, src, guest, d.sync)
			equal(t, unmerged(native.normal(plain)), unmerged(guest.normal(mnt)))
		})
	}
}

// unmerged takes merged masks apart and sorts what lies between two fences: fanotify has no order
// within what it merges, and how much that is depends on the reader's speed.
func unmerged(lines []string) []string {
	var out, step []string
	for _, line := range lines {
		masks, name, _ := strings.Cut(line, " ")
		isDir := ""
		if strings.HasSuffix(masks, ",ISDIR") {
			isDir = ",ISDIR"
		}
		for m := range strings.SplitSeq(strings.TrimSuffix(masks, isDir), ",") {
			step = append(step, m+isDir+" "+name)
		}
		if strings.HasPrefix(name, "fence-") {
			slices.Sort(step)
			out = append(out, slices.Compact(step)...)
			step = nil
		}
	}
	return append(out, step...)
}
