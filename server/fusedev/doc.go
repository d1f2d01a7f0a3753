// Package fusedev is a /dev/fuse connection of our own: it mounts, owns the
// descriptor, reads requests, has them answered by a fuse.RawFileSystem through
// go-fuse's ProtocolServer, and sends notifications.
//
// # Concepts
//
// A superblock is one connection and ends with its last mount. The visible mount is
// the one on the mount point. A private root is another mount of the same superblock that
// only its descriptor knows: work through it does not keep the visible mount busy and
// is allowed even if that is read-only.
//
// A hand is a pair of buffers with a request in the making. Reading is a role that
// one goroutine has at a time: two that alternate on one descriptor wake each other
// across CPUs and double the cost of a request. The reader carries out quick requests
// itself and writes the reply before it reads on, so the common request wakes one thread
// only. What is known to block goes to a goroutine of its own: SETLKW, FSYNC,
// FSYNCDIR, SYNCFS, FALLOCATE, COPY_FILE_RANGE, READ of more than 64 KiB and WRITE of more
// than 256 KiB.
//
// A quick request can turn out slow. The watchdog looks once a millisecond whether the
// reader is still in the handler that it was in at the last look; if so it passes
// the role to a new goroutine, and the old one ends after its reply (server/turns).
//
// A backing file (BackingOpen) is one that the kernel may do I/O with by itself. It is the connection's, and known
// by a number that an answer to OPEN or CREATE names.
//
// # FUSE over io_uring
//
// Where the kernel offers it, requests come by io_uring instead: a queue for each CPU, served by workers, which are threads with
// one ring and one entry each. docs/design.md says why. FORGET and INTERRUPT still come by the device, and the reader above
// takes them. IOURing of Options says whether it is asked for, OverIOURing of a Conn whether it came to that.
//
// # Bounds
//
// MaxWorkers bounds the goroutines that carry out blocking and slow requests. When all are
// taken the reader carries out what comes next itself and is not relieved: requests then
// wait in the kernel, INTERRUPT and FORGET among them, until one has ended.
// Over io_uring, MaxWorkers bounds the workers besides the first ones, which each CPU has, and those that wait for locks.
// SETLKW is apart, since what ends the waiting may be a later request: MaxLockWaiters
// bounds it, and one more is answered ENOLCK.
//
// # Life cycle
//
//	Mount -> Serve -> (INIT answered: WaitReady returns)
//	      -> visible mount gone: Unmounted closes; holders of a private root let go
//	      -> superblock gone, read gives ENODEV: handlers are cancelled and waited for,
//	         the descriptor is closed, OnUnmount is called, Serve returns
//
// Unmount starts that and fails if the mount is in use. Close, or the end of Serve's
// context, detaches a mount in use and aborts the connection.
//
// # Locks
//
// Conn.fdMu is held for reading around each write of a notification and for writing
// to close the descriptor. Nothing else is locked while it is held. Conn.mu and
// handPool.mu are leaves.
//
// # Deadlocks
//
//   - A handler must not touch the mount that it serves, and must not send a
//     notification about the directory or file that it works on (see
//     package fusenotify).
//   - Unmount and Close must not be called from a handler.
//   - A process that uses its own mount does so by calls that the Go scheduler knows
//     to block (package syscall, not RawSyscall), never by a page fault on a
//     mapped file, and never by running a program in a directory there. The
//     runtime's own epoll_ctl is seen to before WaitReady returns.
//   - A thread that waits for its own process's mount keeps that process from dying:
//     a SIGKILL ends the reader, the waiting thread holds the descriptor
//     table and with it /dev/fuse, and so waits for ever. A thread that works on the mount for
//     long should have a table of its own: unshare(CLONE_FILES), then close FD there.
//   - Before INIT is answered every access to the mount blocks, except
//     statx with AT_STATX_DONT_SYNC.
//   - A thread that is stopped (SIGSTOP) keeps the request that io_uring has for it, even past an abort of the connection,
//     until it goes on or is killed.
//   - A handler that blocks without heeding its cancel channel keeps Serve from
//     returning.
package fusedev
