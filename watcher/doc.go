// Package watcher turns kernel notifications of a host tree into a notify.Source: Open probes which
// backend works on the tree and picks the best.
//
// # Backends
//
//	fanotify        a filesystem mark for each file system: no set-up cost, pid, handles
//	fanotify-inode  some file system at or below the root refuses that: directories there are heard of once marked
//	inotify         no privileges: every directory has to be marked; no pid, so echoes are struck off a ledger
//
// A consumer marks each directory that it wants to hear of if and only if Watcher.Marker is not
// nil. Marking one that is covered anyway costs next to nothing. After
// notify.OpMount it looks at, and marks, what the new mount shows.
//
// # Deadlocks
//
// Close waits for Run to return, so it must not be called from emit. Mark and Unmark may be.
package watcher
