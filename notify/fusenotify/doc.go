// Package fusenotify writes FUSE notification messages: what a file system
// tells its kernel unasked. They keep the kernel's caches coherent; none of
// them makes an inotify event that a watcher of a directory could hear.
//
// # Concepts
//
// A message is one write(2) on the /dev/fuse descriptor: a fuse_out_header with
// unique 0 and the notify code in its error field, a fixed part, and a name or
// data. The kernel acts on it before the write returns, so a nil error means
// that the effect is there. ErrNotCached means that the kernel held nothing
// that could have been stale, which is as good.
//
// Newer codes (RESEND 6.9, INC_EPOCH 6.16, PRUNE 6.18) are answered EINVAL by
// a kernel that lacks them. That answer is kept per code, and
// notify.ErrNotSupported is returned from then on without asking again.
//
// # Ordering
//
// Messages written one after the other take effect in that order. A Conn may
// be used by several goroutines; nothing orders them against each other.
//
// # Deadlocks
//
// The kernel takes locks while it acts, and the holder of such a lock may be a
// process that waits for an answer of ours:
//
//   - InvalEntry and Delete take the parent's inode lock. LOOKUP (also with
//     parallel lookups), CREATE, UNLINK, RENAME and every other operation that
//     changes the parent holds it until it is answered. Never send them from the
//     handler of an operation on that parent, nor while holding a lock that
//     such a handler waits for.
//   - InvalInode with an offset of zero or more, and Store, take the locks of
//     the pages concerned. A READ holds them until it is answered, and so can a
//     WRITE. Never send them from a READ or WRITE handler of that inode.
//   - InvalEntry without expireOnly and Delete drop inodes, which queues FORGETs:
//     whoever sends them must not be the only one who reads requests.
//
// So send from goroutines of their own, sharded by parent or inode, and expect
// a send to block for as long as a handler of that parent or inode takes.
package fusenotify
