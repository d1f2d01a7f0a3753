// Package sys holds the kernel interfaces that several packages need and
// golang.org/x/sys/unix does not offer in the form they need them: owned,
// counted descriptors (FD), file handles, and the identity of an object.
//
// # Identity
//
// ObjectOf makes a notify.Object from a descriptor. It is, bit for bit, the key
// that a fanotify FID record (struct fanotify_event_info_fid) gives for the same
// inode: f_fsid, handle type, handle bytes. So an event finds what it is about
// by one map lookup.
//
// Two calls give handles. Plain name_to_handle_at(2) works where the file system
// can also open by handle. Where it cannot (EOPNOTSUPP: overlayfs without
// nfs_export, and most pseudo file systems), AT_HANDLE_FID asks for what fanotify
// uses: a handle that identifies and cannot be opened. Where neither works,
// the inode and device numbers stand in (notify.TypeInode), which are good only
// while somebody holds a descriptor of the object.
//
// # Descriptors
//
// A raw descriptor lives in one FD. Whoever uses it while somebody else may
// close it takes a reference first (Acquire) and gives it back (Release); the
// number is closed with the last reference, so it cannot be recycled under a
// system call.
package sys
