// Package opcount counts FUSE requests by opcode, for both transports. Counting is one atomic add.
package opcount

import "sync/atomic"

// names are the opcodes of include/uapi/linux/fuse.h.
var names = [...]string{
	1: "LOOKUP", 2: "FORGET", 3: "GETATTR", 4: "SETATTR", 5: "READLINK", 6: "SYMLINK", 8: "MKNOD", 9: "MKDIR",
	10: "UNLINK", 11: "RMDIR", 12: "RENAME", 13: "LINK", 14: "OPEN", 15: "READ", 16: "WRITE", 17: "STATFS",
	18: "RELEASE", 20: "FSYNC", 21: "SETXATTR", 22: "GETXATTR", 23: "LISTXATTR", 24: "REMOVEXATTR", 25: "FLUSH",
	26: "INIT", 27: "OPENDIR", 28: "READDIR", 29: "RELEASEDIR", 30: "FSYNCDIR", 31: "GETLK", 32: "SETLK",
	33: "SETLKW", 34: "ACCESS", 35: "CREATE", 36: "INTERRUPT", 37: "BMAP", 38: "DESTROY", 39: "IOCTL", 40: "POLL",
	41: "NOTIFY_REPLY", 42: "BATCH_FORGET", 43: "FALLOCATE", 44: "READDIRPLUS", 45: "RENAME2", 46: "LSEEK",
	47: "COPY_FILE_RANGE", 48: "SETUPMAPPING", 49: "REMOVEMAPPING", 50: "SYNCFS", 51: "TMPFILE", 52: "STATX",
	53: "COPY_FILE_RANGE_64",
}

// Counts are the requests since the start. The zero value is ready.
type Counts struct {
	// byOp[0] counts the opcodes without a name.
	byOp [len(names)]atomic.Uint64
}

// Add counts one request.
func (c *Counts) Add(opcode uint32) {
	if int64(opcode) >= int64(len(names)) || names[opcode] == "" {
		opcode = 0
	}
	c.byOp[opcode].Add(1)
}

// Snapshot returns the counters that are not zero, by the kernel's name of the opcode; "other" are
// those that have none here.
func (c *Counts) Snapshot() map[string]uint64 {
	m := make(map[string]uint64)
	for op := range c.byOp {
		n := c.byOp[op].Load()
		switch {
		case n == 0:
		case op == 0:
			m["other"] = n
		default:
			m[names[op]] = n
		}
	}
	return m
}
