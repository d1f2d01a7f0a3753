package opgen

import (
	"os"

	"golang.org/x/sys/unix"
)

// create makes a file, and writes to it only if it gets content.
func create(path string, data []byte) error {
	return put(path, unix.O_CREAT|unix.O_EXCL, data)
}

// put opens a file for writing, writes data in one go, and closes it.
func put(path string, flags int, data []byte) error {
	f, err := os.OpenFile(path, flags|unix.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if len(data) > 0 {
		_, err = f.Write(data)
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

func mkdir(path string) error { return os.Mkdir(path, 0o755) }

func rename(from, to string, flags uint) func() error {
	return func() error {
		return os.NewSyscallError("renameat2", unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, flags))
	}
}

// all performs several steps as one operation.
func all(steps []func() error) func() error {
	return func() error {
		for _, step := range steps {
			if err := step(); err != nil {
				return err
			}
		}
		return nil
	}
}
