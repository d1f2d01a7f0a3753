//go:build unix

package portable

import (
	"errors"
	"runtime"
	"syscall"
)

func isNotDir(err error) bool { return errors.Is(err, syscall.ENOTDIR) }

// limitAdvice says which limit to raise, if err is one.
func limitAdvice(err error) string {
	switch {
	case errors.Is(err, syscall.ENOSPC) && runtime.GOOS == "linux":
		return "; raise fs.inotify.max_user_watches (sysctl)"
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		if runtime.GOOS == "linux" {
			return "; raise fs.inotify.max_user_instances (sysctl) or the limit of open files (ulimit -n)"
		}
		return "; kqueue takes a descriptor for every file: raise the limit of open files (ulimit -n, kern.maxfilesperproc), or leave directories out with --ignore"
	}
	return ""
}
