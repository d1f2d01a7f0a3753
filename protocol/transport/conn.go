package transport

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"github.com/mdlayher/vsock"
)

// Listen listens at u. sec was loaded, or is nil. The caller asks Check of each connection.
func (u *URL) Listen(ctx context.Context, sec *Security) (net.Listener, error) {
	if err := u.safe(sec, true); err != nil {
		return nil, err
	}
	ln, err := u.ListenPlain(ctx)
	if err != nil {
		return nil, err
	}
	return secure(ln, u.Network, sec), nil
}

// ListenPlain is Listen without TLS and without the question whether that is safe, for a listener that another
// process is to make safe with URL.Adopt.
func (u *URL) ListenPlain(ctx context.Context) (net.Listener, error) {
	ln, err := u.listen(ctx)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", u, err)
	}
	return ln, nil
}

// FileListener is net.FileListener, for vsock as well. The file stays the caller's.
func FileListener(f *os.File) (net.Listener, error) {
	ln, err := net.FileListener(f)
	if err == nil {
		return ln, nil
	}
	if ln, vsockErr := vsock.FileListener(f); vsockErr == nil {
		return ln, nil
	}
	return nil, err
}

// Adopt checks a listener that was opened for us, by systemd for example, and makes it as safe as
// Listen would have. The URL is what it listens on.
func Adopt(ln net.Listener, sec *Security) (net.Listener, *URL, error) {
	u := &URL{Network: ln.Addr().Network()}
	switch addr := ln.Addr().(type) {
	case *net.UnixAddr:
		u.Path = addr.Name
	case *net.TCPAddr:
		u.Host = addr.String()
	case *vsock.Addr:
		u.Port = addr.Port
	default:
		return nil, nil, fmt.Errorf("inherited socket of kind %s: %w", u.Network, ErrURL)
	}
	ln, err := u.Adopt(ln, sec)
	return ln, u, err
}

// Adopt makes ln, which listens at u by ListenPlain, as safe as Listen would have.
func (u *URL) Adopt(ln net.Listener, sec *Security) (net.Listener, error) {
	if err := u.safe(sec, true); err != nil {
		return nil, err
	}
	return secure(ln, u.Network, sec), nil
}

func secure(ln net.Listener, network string, sec *Security) net.Listener {
	if sec.hasTLS() && network != "unix" {
		return tls.NewListener(ln, sec.serverConfig())
	}
	return ln
}

func (u *URL) listen(ctx context.Context) (net.Listener, error) {
	switch u.Network {
	case "unix":
		return listenUnix(ctx, u.Path)
	case "vsock":
		return listenVsock(u.Port)
	}
	var lc net.ListenConfig
	return lc.Listen(ctx, "tcp", u.Host)
}

// Check refuses a peer that may not connect to what listens at u: on a unix socket another
// user than root and ours, on vsock a guest that is not named.
func (u *URL) Check(nc net.Conn) error {
	switch addr := nc.RemoteAddr().(type) {
	case *net.UnixAddr:
		if uc, ok := nc.(*net.UnixConn); ok {
			return checkUser(uc)
		}
	case *vsock.Addr:
		if len(u.CIDs) > 0 && !slices.Contains(u.CIDs, addr.ContextID) {
			return fmt.Errorf("guest %d: %w", addr.ContextID, ErrPeer)
		}
	}
	return nil
}

// Dial connects to u and completes a TLS handshake, if there is one. sec was loaded, or is nil.
func (u *URL) Dial(ctx context.Context, sec *Security) (net.Conn, error) {
	if err := u.safe(sec, false); err != nil {
		return nil, err
	}
	nc, err := u.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", u, err)
	}
	if !sec.hasTLS() || u.Network == "unix" {
		return nc, nil
	}
	host, _, err := net.SplitHostPort(u.Host)
	if err != nil {
		host = ""
	}
	tc := tls.Client(nc, sec.clientConfig(host))
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("connect to %s: %w", u, err)
	}
	return tc, nil
}

// dialTimeout bounds an attempt to connect, the TLS handshake excepted.
const dialTimeout = 10 * time.Second

func (u *URL) dial(ctx context.Context) (net.Conn, error) {
	if u.Network == "vsock" {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		return vsock.DialContext(ctx, u.CID, u.Port, nil)
	}
	d := net.Dialer{Timeout: dialTimeout}
	if u.Network == "unix" {
		return d.DialContext(ctx, "unix", u.Path)
	}
	return d.DialContext(ctx, "tcp", u.Host)
}

// Subject names the peer by its certificate, "" if it has none. The TLS handshake must be
// done.
func Subject(nc net.Conn) string {
	tc, ok := nc.(*tls.Conn)
	if !ok {
		return ""
	}
	chain := tc.ConnectionState().PeerCertificates
	if len(chain) == 0 {
		return ""
	}
	return chain[0].Subject.CommonName
}
