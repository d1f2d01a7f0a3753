package fusedev

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const mountinfoPath = "/proc/self/mountinfo"

// mountEntry is one line of mountinfo.
type mountEntry struct {
	id     uint64
	major  uint32
	minor  uint32
	point  string
	fsType string
}

// readMounts returns the mounts of our namespace in the order of mounting.
func readMounts() ([]mountEntry, error) {
	f, err := os.Open(mountinfoPath)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseMounts(f)
}

// parseMounts reads lines of proc_pid_mountinfo(5):
//
//	36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
func parseMounts(r io.Reader) ([]mountEntry, error) {
	var entries []mountEntry
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		before, after, ok := bytes.Cut(lines.Bytes(), []byte(" - "))
		fields := strings.Fields(string(before))
		kind := strings.Fields(string(after))
		if !ok || len(fields) < 6 || len(kind) == 0 {
			return nil, fmt.Errorf("%s: bad line %q", mountinfoPath, lines.Text())
		}
		var e mountEntry
		var err error
		if e.id, err = strconv.ParseUint(fields[0], 10, 64); err != nil {
			return nil, fmt.Errorf("%s: %w", mountinfoPath, err)
		}
		if _, err = fmt.Sscanf(fields[2], "%d:%d", &e.major, &e.minor); err != nil {
			return nil, fmt.Errorf("%s: device %q: %w", mountinfoPath, fields[2], err)
		}
		e.point = unescape(fields[4])
		e.fsType = kind[0]
		entries = append(entries, e)
	}
	return entries, lines.Err()
}

// unescape undoes the \040 that the kernel writes for blanks and backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out = append(out, byte(n))
				i += 3
				continue
			}
		}
		out = append(out, s[i])
	}
	return string(out)
}

// topMount returns the mount that a path lookup of point ends in.
func topMount(entries []mountEntry, point string) (mountEntry, bool) {
	for i := len(entries) - 1; i >= 0; i-- {
		if entries[i].point == point {
			return entries[i], true
		}
	}
	return mountEntry{}, false
}

func mountByID(entries []mountEntry, id uint64) (mountEntry, bool) {
	for _, e := range entries {
		if e.id == id {
			return e, true
		}
	}
	return mountEntry{}, false
}

// identity says which mount and which superblock something is on.
type identity struct {
	mount uint64
	// unique is a number of the mount that is never used again; zero before Linux 6.8.
	unique uint64
	major  uint32
	minor  uint32
}

// identify asks for the identity of path below dirfd without a request to the file
// system, which nobody serves yet.
func identify(dirfd int, path string, flags int) (identity, error) {
	var st unix.Statx_t
	flags |= unix.AT_STATX_DONT_SYNC | unix.AT_NO_AUTOMOUNT
	if err := unix.Statx(dirfd, path, flags, unix.STATX_MNT_ID, &st); err != nil {
		return identity{}, fmt.Errorf("statx %s: %w", path, err)
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return identity{}, fmt.Errorf("statx %s: the kernel gives no mount id", path)
	}
	id := identity{mount: st.Mnt_id, major: st.Dev_major, minor: st.Dev_minor}
	if err := unix.Statx(dirfd, path, flags, unix.STATX_MNT_ID_UNIQUE, &st); err == nil && st.Mask&unix.STATX_MNT_ID_UNIQUE != 0 {
		id.unique = st.Mnt_id
	}
	return id, nil
}
