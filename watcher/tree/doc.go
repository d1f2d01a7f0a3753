// Package tree watches whole directory trees and names what changed by path,
// relative to the watched root. It turns the notify.Events of a watcher, which
// know directories by file handle, into Records.
//
// # Where paths come from
//
// A table maps each directory's handle to (parent, name). A rename of a
// directory changes one entry, and with it the path of everything below. The
// table follows the stream, not the disk: the path in a Record is the one that
// the file had when the event happened, even if it has been renamed since.
//
// With a file system mark (no notify.Marker) the table starts empty but for
// the roots: there is no walk, and opening takes the same time whatever the
// size of the tree. A directory is looked up by its handle when its first event
// comes. That answers where it is now, and events that are still queued may be
// older. So the first queued event that tells where the directory was (a
// rename's source, a delete, a create) wins over the look-up, and the look-up
// counts only if no queued event moved the directory. To know that, events wait
// behind an unknown directory until the kernel's queue has been read to its end
// once after the look-up: a fence. Events in known directories never wait.
//
// With a Marker every directory is walked, and marked before it is listed. A new
// directory is marked, then listed, and its events wait for a fence: an entry
// that was listed, but whose creation no queued event tells, existed before the
// mark, and gets a Create record of its own. Nothing is lost and nothing is told
// twice.
//
// # Ordering and locks
//
// Records are emitted in the order of the watcher's events; Create records that
// a listing makes up follow directly after the record of their directory.
// Several roots on one file system share a watcher, so a rename between them is
// one Record. Between watchers there is no order.
//
//	group.mu       one watcher's engine, with its table
//	  Tree.mu      delivery
//
// The function given to Run must not call Close, which waits for it.
//
// # What the kernel merges
//
// fanotify merges equal records that were not read yet, so a rename to and fro in a burst can lose a
// part. Where the coalescer says so (Event.Verify), the names are compared with the disk behind a fence, and the
// difference is told as a Record of its own. Paths between two such renames, in one burst, may be the later ones.
//
// inotify tells an exchange like a rename and one back. The first of the two waits for a look at its new name: an
// exchange leaves something there, and if a later event is about that name, it tells.
//
// # Limits
//
// With inotify a directory that is moved out is heard of until its rename was told, a few milliseconds.
// A bind mount that shows part of a watched file system a second time inside the
// tree is reported under one of its paths only.
package tree
