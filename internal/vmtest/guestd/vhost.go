package main

import (
	"fmt"
	"io"
	"net"
	"time"
)

// vhost asks the vhost-user back-end at a socket for its features, as a VMM does first.
func vhost(path string) error {
	c, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	defer c.Close()
	// VHOST_USER_GET_FEATURES is request 1; version 1, no payload. The answer has 8 bytes behind the same header.
	if _, err := c.Write([]byte{1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		return err
	}
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	answer := make([]byte, 20)
	if _, err := io.ReadFull(c, answer); err != nil {
		return fmt.Errorf("no answer: %w", err)
	}
	fmt.Printf("%x\n", answer)
	return nil
}
