// Package passthrough is a fuse.RawFileSystem that shows a directory of the host,
// SOURCE, in a guest mount.
//
// # Nodes
//
// A node is an object that the guest's kernel knows (lookup count above zero). It is
// keyed by (mount id, notify.Object): the file handle, so that an event finds
// its node by one map lookup, and a recycled inode number is never taken for the
// object that had it before. Nodeids count from 2 and are never used again; the
// generation is 0. While the lookup count is above zero an object has one nodeid;
// hard links share it. The root is nodeid 1 and always known.
//
// How a node finds its object again is either by handle or by a descriptor
// that it holds:
//
//   - by handle (HandlePrefer, where the file system and our capabilities allow): files
//     hold nothing, directories have an O_PATH descriptor in a bounded cache.
//   - by descriptor (HandleNever, no handles, handles that cannot be opened, and
//     file systems whose handles do not outlive their cache, as FUSE): one O_PATH
//     descriptor for each node. Its key is still the handle if there is one. A number
//     (notify.TypeInode) is a key only for nodes of this kind.
//
// An unlinked object cannot be opened by handle. So a descriptor is pinned before the guest
// unlinks or overwrites what it knows, and a node with an open file uses the file's
// descriptor when the host has unlinked it.
//
// A node remembers under which name it was seen last. That is a hint,
// verified by handle when it is used: the kernel tells a directory's watchers of a
// write only if the file was opened through its name, because a file opened by handle can be
// without one; and the ledger of expected echoes is kept by name.
//
// # Without opens
//
// With NoOpen the kernel opens and closes regular files without a word, and reads and writes
// by nodeid. A file is opened here when it is first read or written and kept in a bounded cache
// (ioCache); one that could write is closed when it has been idle for idleWrite, and only
// then do the host's watchers hear CLOSE_WRITE. Lost are: locks against others than the guest,
// since nobody tells of the close that ends them; files that the host unlinks while the guest has them open
// and nothing here does; and errors of open, which come with the first write.
//
// # Passthrough
//
// With Options.Backing the guest's kernel reads large files by itself (FOPEN_PASSTHROUGH): it opens the file on the host a
// second time, as the backing file. It wants that of all opens of an inode at a time, or of none, and fails any
// other open with EIO, one with FOPEN_DIRECT_IO alone too. So each node counts its opens, from the reply to RELEASE, which the
// kernel sends after it has let go (admit, leave):
//
//	nobody has it open   an open for reading of PassthroughMin and more begins passthrough
//	opens are cached     any other is
//	opens are passed     any other is; if it can write, with FOPEN_DIRECT_IO as well: its
//	                     reads and writes come to us, and its mappings are of the backing file
//
// Who answers opens in our stead has them counted, and answered so, by OpenBeside.
//
// Pages that the kernel has cached before are old after a write beside passthrough: the next cached open drops them. A
// mapping of the backing file outlives its descriptor and RELEASE. If it can write, nobody may use the cache: after an
// O_RDWR open beside passthrough every open is passed, until a lease tells that nobody can write (unmapped).
//
// The kernel's opens, reads and closes of backing files have the pid of the guest. To be told from the host's
// they go through a clone of SOURCE's mount that Options.Unheard has passed over.
//
// # Never out of SOURCE
//
// The guest names objects by (nodeid, one name). Names with a slash, "." and ".." are
// refused, symbolic links are never followed (O_PATH|O_NOFOLLOW), and handles
// never come from the guest. A file is opened for I/O only through a descriptor or handle of a
// node that is a regular file: never a device, a fifo or a socket. A directory that
// the host moves out of SOURCE stays usable for who holds it, as in a bind mount.
//
// # Credentials
//
// The guest's kernel checks permissions (default_permissions, which POSIX ACLs
// imply). Operations that make an object run with the caller's fsuid, fsgid
// and, where they matter, supplementary groups, on a locked thread. New sets the
// process's umask to 0: the caller's is in the request.
//
// # Inode numbers
//
// Objects on the root's device show the host's st_ino. Every other device
// (submounts, btrfs subvolumes) gets a number d from 1 when it is first seen, and shows
// d<<48|st_ino, or if st_ino needs more than 48 bits, a hash of both with bit 63 set: the guest sees one
// st_dev, and tools compare (st_dev, st_ino).
//
// With AnnounceSubmounts the guest's kernel mounts a directory whose device is not its parent's, and gives it an st_dev of
// its own; then only files that are on another device than their directory need such numbers (a file as
// a mount point; the lower layers of an overlayfs).
//
// # Events
//
// With a Marker every directory is marked before the reply that makes it known goes out.
// With a Ledger every change of the host is announced by (directory, name)
// before it is made. Events of a directory itself are announced under the name ".".
//
// # Locks
//
// Blocking locks are tried, never waited for in the kernel, so that an
// interrupt ends them: a waiter wakes when a lock of the same file is
// released here, and looks from time to time for one that a process of the host released.
// POSIX locks are open-file-description locks on a description of each owner.
//
// Lock order:
//
//	stream.mu            one reader of a directory stream
//	  markMu[i]          Mark and Unmark of one object exclude each other
//	    shard.mu         nodes by id and by object, in one of the table's shards
//	  fdRing.mu          cached descriptors of directories
//	  ioCache.mu         files opened for a guest that does not say so
//	    node.mu          one node's hint, descriptors and open files
//	mounts.mu
//	  mount.mu             devices of one mount
//	fileTable.mu, streamCache.mu, lockState.mu: nothing is taken under them
//
// No lock is held over a system call that can wait for a guest. The own mount
// point below SOURCE would be a deadlock; Exclude keeps it out.
package passthrough
