package transport

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/heraldfs/heraldfs/protocol"
)

// Security is what we prove ourselves with and check peers against. The zero value is
// nothing of either.
type Security struct {
	// CertFile, KeyFile and CAFile are PEM files: our certificate and key, and who signs
	// our peers'. All three, or none.
	CertFile, KeyFile, CAFile string
	// ServerName is the name that a server's certificate must have; "" is the host of the URL.
	ServerName string
	// TokenFile holds a secret that both sides know; white space around it does not count.
	TokenFile string

	token []byte
	tls   atomic.Pointer[material]
}

// material is what was loaded last.
type material struct {
	cert tls.Certificate
	ca   *x509.CertPool
}

func (s *Security) hasTLS() bool   { return s != nil && s.CertFile+s.KeyFile+s.CAFile != "" }
func (s *Security) hasToken() bool { return s != nil && s.TokenFile != "" }

// Token is what Load found, nil if there is none.
func (s *Security) Token() []byte { return s.token }

// Load reads all files.
func (s *Security) Load() error {
	if s.TokenFile != "" {
		b, err := os.ReadFile(s.TokenFile)
		if err != nil {
			return fmt.Errorf("token: %w", err)
		}
		if b = bytes.TrimSpace(b); len(b) < protocol.MinToken {
			return fmt.Errorf("token: %s has %d bytes, at least %d are needed", s.TokenFile, len(b), protocol.MinToken)
		}
		s.token = b
	}
	return s.Reload()
}

// Reload reads the certificates again, for new connections. After an error the old ones stay.
func (s *Security) Reload() error {
	if !s.hasTLS() {
		return nil
	}
	if s.CertFile == "" || s.KeyFile == "" || s.CAFile == "" {
		return fmt.Errorf("certificate, key and CA belong together: %w", ErrInsecure)
	}
	cert, err := tls.LoadX509KeyPair(s.CertFile, s.KeyFile)
	if err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	pem, err := os.ReadFile(s.CAFile)
	if err != nil {
		return fmt.Errorf("certificate authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return fmt.Errorf("certificate authority: %s holds no certificate", s.CAFile)
	}
	s.tls.Store(&material{cert, pool})
	return nil
}

// serverConfig asks for what was loaded last at each handshake.
func (s *Security) serverConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			m := s.tls.Load()
			return &tls.Config{
				MinVersion:   tls.VersionTLS13,
				Certificates: []tls.Certificate{m.cert},
				ClientAuth:   tls.RequireAndVerifyClientCert,
				ClientCAs:    m.ca,
			}, nil
		},
	}
}

func (s *Security) clientConfig(host string) *tls.Config {
	m := s.tls.Load()
	name := s.ServerName
	if name == "" {
		name = host
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{m.cert},
		RootCAs:      m.ca,
		ServerName:   name,
	}
}
