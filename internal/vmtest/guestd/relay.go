package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"strconv"

	"github.com/mdlayher/vsock"
)

// relay listens at a port of vsock, and joins one connection after the other with the virtio-serial port of a name.
func relay(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("relay %q: give a port and a name", args)
	}
	n, err := strconv.ParseUint(args[0], 10, 32)
	if err != nil {
		return err
	}
	ln, err := vsock.Listen(uint32(n), nil)
	if err != nil {
		return err
	}
	fmt.Println("listening")
	for {
		nc, err := ln.Accept()
		if err != nil {
			return err
		}
		port, err := openPort(args[1])
		if err == nil {
			join(nc, port)
		} else {
			fmt.Fprintln(os.Stderr, "relay:", err)
		}
		nc.Close()
	}
}

// join copies until nc ends.
func join(nc net.Conn, port *os.File) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(nc, patient{port})
	}()
	io.Copy(port, nc)
	port.Close()
	<-done
}
