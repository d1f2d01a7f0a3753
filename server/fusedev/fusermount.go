package fusedev

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// helperPath finds fusermount3, or the fusermount of libfuse 2. A daemon may be
// started with an empty PATH.
func helperPath() (string, error) {
	for _, name := range []string{"fusermount3", "fusermount"} {
		for _, dir := range []string{"", "/usr/bin/", "/bin/", "/usr/local/bin/"} {
			if path, err := exec.LookPath(dir + name); err == nil {
				return path, nil
			}
		}
	}
	return "", ErrNoHelper
}

// helperOptions are the words after -o. fusermount splits at commas and takes a
// backslash as an escape.
func helperOptions(opts *Options) string {
	words := []string{"fsname=" + opts.FSName, "subtype=" + opts.Subtype}
	words = append(words, opts.data()...)
	if opts.ReadOnly {
		words = append(words, "ro")
	}
	if opts.Suid {
		words = append(words, "suid")
	}
	if opts.Dev {
		words = append(words, "dev")
	}
	for _, f := range []struct {
		flag uintptr
		word string
	}{
		{unix.MS_NOEXEC, "noexec"}, {unix.MS_NOATIME, "noatime"}, {unix.MS_SYNCHRONOUS, "sync"},
		{unix.MS_DIRSYNC, "dirsync"},
	} {
		if opts.Flags&f.flag != 0 {
			words = append(words, f.word)
		}
	}
	escape := strings.NewReplacer(`\`, `\\`, `,`, `\,`)
	for i, w := range words {
		words[i] = escape.Replace(w)
	}
	return strings.Join(words, ",")
}

// mountHelper has fusermount mount for us. It sends the descriptor of /dev/fuse over
// the socket that _FUSE_COMMFD names.
func mountHelper(point string, opts *Options) (int, error) {
	path, err := helperPath()
	if err != nil {
		return -1, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socketpair: %w", err)
	}
	defer unix.Close(pair[0])
	remote := os.NewFile(uintptr(pair[1]), "fusermount")
	defer remote.Close()

	var said bytes.Buffer
	cmd := exec.Command(path, "-o", helperOptions(opts), "--", point)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{remote}
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		return -1, helperError(path, said.String(), err)
	}
	// The helper has sent what it had to send, and so cannot keep us waiting.
	remote.Close()
	fd, err := receiveFD(pair[0])
	if err != nil {
		return -1, fmt.Errorf("%s sent no descriptor: %w", path, err)
	}
	return fd, nil
}

func helperError(path, said string, err error) error {
	said = strings.TrimSpace(said)
	switch {
	case strings.Contains(said, "user_allow_other"):
		return fmt.Errorf("%w (%s)", ErrAllowOther, said)
	case strings.Contains(said, devicePath):
		return fmt.Errorf("%w: %s", ErrNoDevice, said)
	case strings.Contains(said, "resource busy"):
		return fmt.Errorf("%w: %s", ErrBusy, said)
	case said != "":
		return fmt.Errorf("%s: %w", said, err)
	}
	return fmt.Errorf("%s: %w", path, err)
}

func receiveFD(socket int) (int, error) {
	data := make([]byte, 8)
	control := make([]byte, unix.CmsgSpace(4))
	var n int
	var err error
	for {
		_, n, _, _, err = unix.Recvmsg(socket, data, control, unix.MSG_CMSG_CLOEXEC)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return -1, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil {
		return -1, err
	}
	if len(messages) != 1 {
		return -1, errors.New("no control message")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return -1, err
	}
	if len(fds) != 1 {
		return -1, fmt.Errorf("%d descriptors", len(fds))
	}
	return fds[0], nil
}

func unmountHelper(point string, lazily bool) error {
	path, err := helperPath()
	if err != nil {
		return err
	}
	args := []string{"-u"}
	if lazily {
		args = append(args, "-z")
	}
	var said bytes.Buffer
	cmd := exec.Command(path, append(args, "--", point)...)
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("unmount %s: %w", point, helperError(path, said.String(), err))
	}
	return nil
}
