// Package transport makes connections for package protocol: from a URL it listens or
// dials, and says who may.
//
//	unix:///PATH       mode 0600; without a PATH the default one. The peer must be root or
//	                   the user that the server runs as.
//	tcp://HOST:PORT    TLS 1.3 with certificates on both sides; or, on a loopback address, a token.
//	vsock://CID:PORT   to a virtual machine's host (CID 2) or a guest; vsock://:PORT to listen. A token,
//	                   certificates, or ?cid=N,M to name the guests.
//
// ?root=NAME chooses a server's root, ?origin=NAME is for a mount. A URL that would let in anybody is refused before
// anything is opened, with ErrInsecure.
package transport

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// Sentinel errors, matched with errors.Is.
var (
	// ErrInsecure says that anybody could connect, or that we could be talking to anybody.
	ErrInsecure = errors.New("not safe without certificates or a token")
	// ErrURL says that a URL is not understood.
	ErrURL = errors.New("not a heraldfs URL")
	// ErrPeer says that a peer is not one of those who may connect.
	ErrPeer = errors.New("peer may not connect")
)

// URL is a parsed address.
type URL struct {
	Network string // "unix", "tcp" or "vsock"
	Path    string // unix
	Host    string // tcp: host and port
	CID     uint32 // vsock: the peer; 0 where one listens
	Port    uint32 // vsock
	// CIDs are the guests that may connect; empty is all.
	CIDs []uint32
	// Root is the root to subscribe to; "" is the server's default.
	Root string
	// Origin is for a subscriber of its own: what the server calls the file server behind which it is.
	Origin string
}

// IsURL reports whether an argument is meant as a URL and not as a path.
func IsURL(s string) bool {
	for _, scheme := range []string{"unix:", "tcp:", "vsock:"} {
		if strings.HasPrefix(s, scheme) {
			return true
		}
	}
	return false
}

// Parse understands a URL.
func Parse(s string) (*URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrURL, err)
	}
	bad := func(why string) error { return fmt.Errorf("%w: %q: %s", ErrURL, s, why) }
	out := &URL{Network: u.Scheme}
	switch {
	case u.User != nil, u.Fragment != "":
		return nil, bad("there is no user and no fragment in it")
	case u.Scheme == "unix":
		if u.Host != "" {
			return nil, bad("write unix:///PATH, with three slashes")
		}
		if out.Path = u.Path + u.Opaque; out.Path == "" || out.Path == "/" {
			out.Path = DefaultPath()
		}
		if !filepath.IsAbs(out.Path) {
			return nil, bad("the path must be absolute")
		}
	case u.Scheme == "tcp":
		if _, port, err := net.SplitHostPort(u.Host); err != nil || port == "" || u.Path != "" {
			return nil, bad("write tcp://HOST:PORT")
		}
		out.Host = u.Host
	case u.Scheme == "vsock":
		if err := out.vsock(u.Host); err != nil || u.Path != "" {
			return nil, bad("write vsock://CID:PORT, or vsock://:PORT to listen")
		}
	default:
		return nil, bad("give unix:///PATH, tcp://HOST:PORT or vsock://CID:PORT")
	}
	return out, out.query(u.Query(), bad)
}

func (u *URL) vsock(host string) error {
	cid, port, ok := strings.Cut(host, ":")
	if !ok {
		return ErrURL
	}
	n, err := strconv.ParseUint(port, 10, 32)
	if err != nil {
		return err
	}
	u.Port = uint32(n)
	if cid == "" {
		return nil
	}
	n, err = strconv.ParseUint(cid, 10, 32)
	u.CID = uint32(n)
	return err
}

func (u *URL) query(q url.Values, bad func(string) error) error {
	for key, values := range q {
		switch {
		case key == "root" && len(values) == 1:
			u.Root = values[0]
		case key == "origin" && len(values) == 1:
			u.Origin = values[0]
		case key == "cid" && u.Network == "vsock":
			for _, v := range strings.Split(strings.Join(values, ","), ",") {
				n, err := strconv.ParseUint(v, 10, 32)
				if err != nil {
					return bad("cid is a list of numbers")
				}
				u.CIDs = append(u.CIDs, uint32(n))
			}
		default:
			return bad("unknown parameter " + key)
		}
	}
	return nil
}

func (u *URL) String() string {
	switch u.Network {
	case "unix":
		return "unix://" + u.Path
	case "tcp":
		return "tcp://" + u.Host
	}
	cid := ""
	if u.CID != 0 {
		cid = strconv.FormatUint(uint64(u.CID), 10)
	}
	return fmt.Sprintf("vsock://%s:%d", cid, u.Port)
}

// DefaultPath is where a server listens and a subscriber looks if nobody says otherwise:
// heraldfs.sock in $XDG_RUNTIME_DIR, or else in /run; other systems than Linux have a directory
// for each user's temporary files.
func DefaultPath() string {
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if dir == "" || !filepath.IsAbs(dir) {
		dir = "/run"
		if runtime.GOOS != "linux" {
			dir = os.TempDir()
		}
	}
	return filepath.Join(dir, "heraldfs.sock")
}

// loopback reports whether host and port name this machine only.
func loopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// Safe refuses to listen where anybody could connect, as Listen will. sec need not be loaded.
func (u *URL) Safe(sec *Security) error { return u.safe(sec, true) }

// SafeToDial refuses to connect where we could be talking to anybody, as Dial will.
func (u *URL) SafeToDial(sec *Security) error { return u.safe(sec, false) }

// meant refuses what says nothing on this side of a connection: whoever wrote it expects more.
func (u *URL) meant(listen bool) error {
	switch {
	case listen && u.CID != 0:
		return fmt.Errorf("%s: %w: write vsock://:PORT to listen, and ?cid=N for the guests that may connect", u, ErrURL)
	case listen && u.Root+u.Origin != "":
		return fmt.Errorf("%s: %w: root and origin are for who connects", u, ErrURL)
	case !listen && u.Network == "vsock" && u.CID == 0:
		return fmt.Errorf("%s: %w: no CID to connect to; the host's is 2", u, ErrURL)
	case !listen && len(u.CIDs) > 0:
		return fmt.Errorf("%s: %w: cid is for who listens", u, ErrURL)
	}
	return nil
}

// safe refuses what anybody could use.
func (u *URL) safe(s *Security, listen bool) error {
	if err := u.meant(listen); err != nil {
		return err
	}
	switch {
	case s.hasTLS(), u.Network == "unix":
		return nil
	case u.Network == "vsock" && (!listen || len(u.CIDs) > 0 || s.hasToken()):
		return nil
	case u.Network == "vsock":
		return fmt.Errorf("%s: %w: give --token-file, --tls-cert, --tls-key and --tls-ca, or ?cid=N", u, ErrInsecure)
	case !loopback(u.Host):
		return fmt.Errorf("%s: %w: give --tls-cert, --tls-key and --tls-ca (a token alone will do on a loopback address)", u, ErrInsecure)
	case !s.hasToken():
		return fmt.Errorf("%s: %w: give --token-file, or --tls-cert, --tls-key and --tls-ca", u, ErrInsecure)
	}
	return nil
}
