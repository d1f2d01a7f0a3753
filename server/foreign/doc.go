// Package foreign feeds a guest mount of somebody else's shared folder (virtiofs, 9p, NFS, SMB, a FUSE
// file system, a bind mount) with the events of a heraldfs server on the host.
//
// # Concepts
//
// The guest reads files through its own view of the share, SOURCE; the host tells of changes by
// path, and by file handles that mean nothing here. A Share is a notify.Source for these
// events, and what the replay needs to make sense of them:
//
//   - Objects. A host object is bound to a nodeid of ours when there is evidence that they are the
//     same: the path of a directory leads to it in the guest's view as of the event; a name stood for
//     it then; the inode numbers agree; we have found it by its name. A directory that the guest does
//     not know is not bound, and its events are dropped without a question to anybody. If
//     SOURCE turns out to be the very file system that the host serves, handles are compared
//     and nothing needs to be bound.
//   - Settling. SOURCE has caches. Before an event is replayed, the names that it is about are looked
//     at through SOURCE, past its caches as far as the kernel lets us, until they show what the
//     host showed when it sent the event, or Options.SettleTimeout after the event came has passed.
//     Events are replayed in order, so no event is later than that because of others.
//   - Echoes. What the guest changes through the mount comes back from the server. The
//     ledger knows of each operation before it is made; events that it explains are dropped.
//
// # Disconnected
//
// Without a server nothing tells of changes. The guest's caches are then told to ask again, and
// what they are answered is good for Options.OfflineCache. When the connection is back, the events since
// are replayed; if the server does not have them all, what the guest knows is compared
// with SOURCE. After that caches are long again.
//
// # Clocks
//
// Events carry the host's time. The replay gets them with ours: the time when they came, or a moment before
// the guest's own operation whose echo is still to come, because that one was later.
//
// # Locks
//
//	objects.mu  bindings; a leaf
//	ledger.mu   a leaf
//	Share.mu    the connection's state; a leaf
//
// Resolve and Settle are the replayer's and take turns with it; what they share needs no lock.
package foreign
