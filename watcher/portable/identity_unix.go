//go:build unix && !linux

package portable

import (
	"io/fs"
	"syscall"
)

// identify returns what tells the file of fi from all others that exist.
func identify(_ string, fi fs.FileInfo) (id identity, gone bool) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return identity{}, false
	}
	return identity{uint64(st.Dev), uint64(st.Ino), born(st)}, false
}
