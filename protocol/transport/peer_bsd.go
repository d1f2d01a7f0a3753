//go:build darwin || freebsd

package transport

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// solLocal is SOL_LOCAL of <sys/un.h>.
const solLocal = 0

// checkUser lets in root and the user that we run as, as the kernel knew them when they connected.
func checkUser(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Xucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptXucred(int(fd), solLocal, unix.LOCAL_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return fmt.Errorf("peer credentials: %w", credErr)
	}
	return allowUser(cred.Uid, uint32(os.Geteuid()))
}
