package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/vmtest/wire"
)

// watch starts an inotify instance on r.Watch; the caller's answer says that it listens.
func (s *server) watch(r wire.Request) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("inotify_init1: %w", err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	dirs := make(map[int32]string)
	for _, dir := range r.Watch {
		wd, err := unix.InotifyAddWatch(fd, dir, r.Mask)
		if err != nil {
			f.Close()
			return fmt.Errorf("inotify_add_watch %s: %w", dir, err)
		}
		dirs[int32(wd)] = dir
	}
	s.mu.Lock()
	s.watches[r.ID] = f
	s.mu.Unlock()
	go s.read(r.ID, f, dirs)
	return nil
}

func (s *server) unwatch(id uint64) error {
	s.mu.Lock()
	f := s.watches[id]
	delete(s.watches, id)
	s.mu.Unlock()
	if f == nil {
		return fmt.Errorf("no watch %d", id)
	}
	return f.Close()
}

// read passes events on until the instance is closed.
func (s *server) read(id uint64, f *os.File, dirs map[int32]string) {
	buf := make([]byte, 64<<10)
	for {
		n, err := f.Read(buf)
		if err != nil {
			return
		}
		m := wire.Message{ID: id}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			size := int(binary.LittleEndian.Uint32(b[12:]))
			name := b[unix.SizeofInotifyEvent : unix.SizeofInotifyEvent+size]
			if i := bytes.IndexByte(name, 0); i >= 0 {
				name = name[:i]
			}
			m.Events = append(m.Events, wire.Event{
				Dir:    dirs[int32(binary.LittleEndian.Uint32(b))],
				Mask:   binary.LittleEndian.Uint32(b[4:]),
				Cookie: binary.LittleEndian.Uint32(b[8:]),
				Name:   bytes.Clone(name),
			})
			b = b[unix.SizeofInotifyEvent+size:]
		}
		s.send(m)
	}
}
