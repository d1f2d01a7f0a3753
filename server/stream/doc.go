// Package stream serves the changes of directories to subscribers over package
// protocol: it numbers them, keeps them for a while, and continues where a subscriber
// left off.
//
// # Concepts
//
// A Stream is one root: its sequence, its journal and its sessions. Records are handed to it
// by a Source, or by Publish; it knows nothing of how they were found. Nothing goes from
// one Stream to another: what a subscriber of a root can see is that root.
//
// The journal holds the last records, bounded by number and by bytes, and also on disk if a
// directory is given. Each record is encoded once, for all subscribers. A session reads the
// journal at its own pace. When it has fallen so far behind that records
// which it has not read are about to be dropped, they are folded into a backlog of its own (the last
// state per name, renames kept); beyond the bound of that, it is told of a gap. Publish
// never waits for a session.
//
// # Restarts
//
// A journal on disk is continued after a clean shutdown, and after a crash of the process
// alone: what was written is then in the page cache still. After a crash of the machine
// it may be shorter than what subscribers have seen, and its numbers would come a
// second time; so a new stream begins, and every subscriber is told. A stream that is continued has missed what
// happened meanwhile: Ready makes that a gap.
//
// # Goroutines and locks
//
// A session has one goroutine that reads (acks), one that writes, and one that folds.
//
//	Stream.pub (one Publish at a time; encoding, disk)
//	  Stream.mu (sessions)
//	  session.mu (cursor, backlog)
//	    journal.mu (entries)
//	Server.mu (connections)
//
// Nothing is written to a connection with a lock held.
package stream
