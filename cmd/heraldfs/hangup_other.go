//go:build !linux

package main

import "io"

// hangup would tell that the reader of out has gone. Here the next write does.
func hangup(io.Writer) (gone <-chan struct{}, stop func()) { return make(chan struct{}), func() {} }
