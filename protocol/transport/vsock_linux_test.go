package transport

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
)

// TestFileListener takes listeners that others have opened, of each kind. What goes through a vsock is shown in a
// machine that has one: internal/vmtest/agenttest, TestVsock.
func TestFileListener(t *testing.T) {
	ours, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	f, err := ours.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ln, err := FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if _, u, err := Adopt(ln, nil); err != nil || u.String() != "unix://"+ours.Addr().String() {
		t.Errorf("got %v, %v", u, err)
	}

	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		testenv.Lack(t, fmt.Sprintf("vsock: %v", err))
	}
	v := os.NewFile(uintptr(fd), "vsock")
	defer v.Close()
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: unix.VMADDR_PORT_ANY}), unix.Listen(fd, 1)); err != nil {
		t.Fatal(err)
	}
	vln, err := FileListener(v)
	if err != nil {
		t.Fatal(err)
	}
	defer vln.Close()
	if _, _, err := Adopt(vln, nil); !errors.Is(err, ErrInsecure) {
		t.Errorf("got %v, want ErrInsecure", err)
	}
	if _, u, err := Adopt(vln, &Security{TokenFile: "x"}); err != nil || u.Network != "vsock" || u.Port == 0 {
		t.Errorf("got %v, %v", u, err)
	}

	plain, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if _, err := FileListener(plain); err == nil {
		t.Error("what is no socket is taken")
	}
}
