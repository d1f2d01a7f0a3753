package client

import (
	"context"
	"errors"
	"fmt"

	"github.com/heraldfs/heraldfs/protocol"
)

// ErrNoStatus says that a server is of a version that does not tell how it is doing, or does not tell
// it here.
var ErrNoStatus = errors.New("the server does not answer that")

// Inquire asks a server how it is doing and returns the document. Of o it uses Dial and Conn.
func Inquire(ctx context.Context, o Options) ([]byte, error) {
	nc, err := o.Dial(ctx)
	if err != nil {
		return nil, err
	}
	o.Conn.Caps = append(o.Conn.Caps[:len(o.Conn.Caps):len(o.Conn.Caps)], protocol.CapStatus)
	c, err := protocol.Client(ctx, nc, o.Conn)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	if !c.Has(protocol.CapStatus) {
		return nil, ErrNoStatus
	}
	if err := c.Write(&protocol.Inquire{}); err != nil {
		return nil, explain(c, err)
	}
	for {
		m, err := c.Read()
		if err != nil {
			return nil, fmt.Errorf("inquire: %w", err)
		}
		if s, ok := m.(*protocol.Status); ok {
			return s.JSON, nil
		}
	}
}
