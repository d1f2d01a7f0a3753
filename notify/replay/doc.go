// Package replay makes the watchers in a guest mount hear what happened on the host.
//
// # How
//
// FUSE has no message that fires an fsnotify event in the guest's kernel. So for each
// host event one thread of ours, the replayer, performs the same system call on
// the guest mount. The requests of that call reach the FUSE server with the
// replayer's thread id in their header; FS, a middleware over any
// fuse.RawFileSystem, recognises them and answers from the state before the
// event, without touching the host. The guest's VFS then fires its own hooks and
// updates its dentries and attributes as for a local change.
//
// # Concepts
//
//   - The view is the guest kernel's dentry tree as far as our answers tell.
//   - A step is one system call of the replayer, with the answers it will need.
//   - A ghost is a node for something that is gone again, or that the guest does not
//     know and needs no more than a name for. Its answers are never cached.
//   - The staging directory is a child of the root that only the replayer can look
//     up. A move to or from a place that the guest does not know goes through it, and so does
//     an event that only an inode's own watchers may hear.
//   - A finding is what was asked about an event ahead of its turn, to save the replayer's
//     thread a round trip to where the process's descriptors are.
//   - The guest's interest is what its kernel holds: an event about neither a
//     known directory nor a known object is dropped before it costs anything.
//
// # Ordering
//
// Events are replayed one after the other in the order of their Source. Caches
// are dropped before the step that announces the change, so whoever is woken
// reads the new state. A LOOKUP of a guest process that is being answered holds its
// directory's lock in the guest's kernel until the answer is in, and so delays
// the step on that directory; an answer can not become stale unnoticed.
//
// # Locks
//
//	Replayer (one thread, no lock while in a system call on the mount)
//	  FS.cur    the step in progress; written only between system calls
//	  view.mu   a leaf; never held across a call into the file system
//	  queue.mu  a leaf
//
// # Deadlocks to avoid
//
// A handler of FS never waits for the replayer: the replayer's system call may be
// waiting for a lock that the handler's caller holds in the guest's kernel.
// The one exception is the sync attribute, whose caller holds no lock.
// Notifications are sent for the replayer between its steps, and, INVAL_INODE only, by the source's
// goroutine in emit; never by a handler. One that drops pages waits for READs of the file, so the
// handler of READ must wait for neither of the two.
package replay
