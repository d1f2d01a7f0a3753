package replay

import (
	"os"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// StatusAttr is the extended attribute of the mount's root whose value is what SetStatus's function
// returns. It is in no listing, and only root and the user that the daemon runs as may read it.
const StatusAttr = "user.heraldfs.status"

// SetStatus has describe answer for StatusAttr; it must not touch the mount. Without it the
// attribute does not exist.
func (f *FS) SetStatus(describe func() []byte) { f.describe.Store(&describe) }

func (f *FS) answerStatus(h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	describe := f.describe.Load()
	switch {
	case describe == nil:
		return 0, fuse.Status(syscall.ENODATA)
	case h.Uid != 0 && h.Uid != uint32(os.Geteuid()):
		return 0, fuse.EACCES
	}
	text := (*describe)()
	if len(text) > len(dest) {
		// Also the answer to a question for the size.
		return uint32(len(text)), fuse.ERANGE
	}
	return uint32(copy(dest, text)), fuse.OK
}
