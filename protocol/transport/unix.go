package transport

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"
)

// UnixListener is a listener that made its socket in the file system. Close removes that, but not
// a socket that somebody else has put in its place.
type UnixListener struct {
	*net.UnixListener
	path string
	// made is the socket. Its inode cannot become another's while the listener is open.
	made  os.FileInfo
	close sync.Once
	err   error
}

// OwnUnix makes l, which has just made the socket at path, a UnixListener.
func OwnUnix(l *net.UnixListener, path string) (*UnixListener, error) {
	l.SetUnlinkOnClose(false)
	st, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	return &UnixListener{UnixListener: l, path: path, made: st}, nil
}

// Close unblocks Accept and removes the socket. Idempotent.
func (l *UnixListener) Close() error {
	l.close.Do(func() {
		if st, err := os.Lstat(l.path); err == nil && os.SameFile(st, l.made) {
			_ = os.Remove(l.path)
		}
		l.err = l.UnixListener.Close()
	})
	return l.err
}

// listenUnix replaces a socket that nobody listens on any more.
func listenUnix(ctx context.Context, path string) (*UnixListener, error) {
	if st, err := os.Lstat(path); err == nil {
		if st.Mode()&fs.ModeSocket == 0 {
			return nil, fmt.Errorf("%s is there and is no socket: %w", path, fs.ErrExist)
		}
		d := net.Dialer{Timeout: time.Second}
		if c, err := d.DialContext(ctx, "unix", path); err == nil {
			_ = c.Close()
			return nil, fmt.Errorf("another server listens there: %w", fs.ErrExist)
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	l, err := OwnUnix(ln.(*net.UnixListener), path)
	if err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	// Until here the umask decides; whoever is quicker than us is stopped by Check.
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}
