package portable

import (
	"errors"
	"syscall"
)

// errDirectory is ERROR_DIRECTORY: the name is no directory.
const errDirectory syscall.Errno = 267

func isNotDir(err error) bool {
	return errors.Is(err, syscall.ERROR_PATH_NOT_FOUND) || errors.Is(err, errDirectory)
}

func limitAdvice(error) string { return "" }
