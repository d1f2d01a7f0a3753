package transport

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// checkUser lets in root and the user that we run as, as the kernel knew them when they connected.
func checkUser(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return fmt.Errorf("peer credentials: %w", credErr)
	}
	return allowUser(cred.Uid, uint32(os.Geteuid()))
}
