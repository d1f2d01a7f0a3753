// Package inotify is the watcher backend on inotify(7), for those who may not
// use fanotify.
//
// # Concepts
//
// A directory is heard of once it was marked, and its watch descriptor stands for
// it: records carry neither handles nor a pid. A rename comes as two
// halves with one cookie, for the coalescer to pair. Whose change it was only a
// notify.Ledger can tell; one that has the methods of Positioned is told where
// in the queue each record stood, and so never takes a later change for an earlier echo.
//
// The kernel tells an ATTRIB of a directory to its parent's watch, by name, and to
// its own, without one. The second is reported (as name ".") only if the parent is not
// marked, so that one change makes one event.
//
// MOVE_SELF tells which marked directory a rename has moved. It is handed to the coalescer, and records from below that
// directory name it (Raw.Moved) until nothing is held back any more, so that they do not overtake the rename.
//
// Submounts are found through the mount table as with fanotify; their directories want marks
// like all others.
//
// # Lock order
//
//	Watcher.mu      the watches; held across inotify_add_watch and while one buffer is parsed
//	Watcher.posMu   the position in the queue; held across read(2)
//
// The Ledger is called with mu held and must not call back, but for the position (posMu).
package inotify
