//go:build !unix

package stream

import "os"

// lockDir opens the lock file; here it keeps nobody out.
func lockDir(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
}

// bootID is not known here, so only a journal that was closed is continued.
func bootID() string { return "" }
