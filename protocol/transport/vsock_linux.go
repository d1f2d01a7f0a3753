package transport

import (
	"net"
	"os"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

// vsockListener has the File that package vsock's listener has not, as net's have it.
type vsockListener struct {
	*vsock.Listener
	file *os.File
}

// listenVsock listens on a port of every CID that this machine has; 0 is one that is free.
func listenVsock(port uint32) (net.Listener, error) {
	if port == 0 {
		port = unix.VMADDR_PORT_ANY
	}
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	file := os.NewFile(uintptr(fd), "vsock")
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}); err != nil {
		file.Close()
		return nil, os.NewSyscallError("bind", err)
	}
	if err := unix.Listen(fd, unix.SOMAXCONN); err != nil {
		file.Close()
		return nil, os.NewSyscallError("listen", err)
	}
	ln, err := vsock.FileListener(file) // of a duplicate
	if err != nil {
		file.Close()
		return nil, err
	}
	return &vsockListener{ln, file}, nil
}

// File returns a duplicate, which is the caller's to close.
func (l *vsockListener) File() (*os.File, error) {
	raw, err := l.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd, dupErr := -1, error(nil)
	if err := raw.Control(func(own uintptr) { fd, dupErr = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, os.NewSyscallError("fcntl", dupErr)
	}
	return os.NewFile(uintptr(fd), "vsock"), nil
}

// Close unblocks Accept.
func (l *vsockListener) Close() error {
	l.file.Close()
	return l.Listener.Close()
}
