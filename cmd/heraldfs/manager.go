package main

import (
	"fmt"
	"net"
	"os"
)

// manager is systemd, or whoever else started us and waits for word. A nil manager does nothing.
type manager struct{ c net.Conn }

func dialManager() (*manager, error) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil, nil
	}
	c, err := net.Dial("unixgram", path)
	if err != nil {
		return nil, fmt.Errorf("NOTIFY_SOCKET: %w", err)
	}
	return &manager{c}, nil
}

func (m *manager) tell(state string) error {
	if m == nil {
		return nil
	}
	if _, err := m.c.Write([]byte(state)); err != nil {
		return fmt.Errorf("NOTIFY_SOCKET: %w", err)
	}
	return nil
}

func (m *manager) ready() error    { return m.tell("READY=1") }
func (m *manager) stopping() error { return m.tell("STOPPING=1") }

func (m *manager) close() {
	if m != nil {
		m.c.Close()
	}
}
