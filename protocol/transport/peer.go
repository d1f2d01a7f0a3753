package transport

import "fmt"

func allowUser(peer, own uint32) error {
	if peer != 0 && peer != own {
		return fmt.Errorf("user %d: %w", peer, ErrPeer)
	}
	return nil
}
