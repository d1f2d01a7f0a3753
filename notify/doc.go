// Package notify holds the words that every part of heraldfs shares: what
// happened (Op), to what (Object), as the kernel said it (Raw) and as we pass
// it on (Event), who tells it (Source) and who is told (Delivery).
//
// # Concepts
//
// A watcher reads kernel records and turns each into a Raw: still a mask that
// can hold several bits, still two halves for an inotify rename. The coalescer
// (package notify/coalesce) turns Raw records into Events: one operation each,
// one rename with source and destination. A Source yields Events.
//
// Objects are named by file handle, never by path: a path is only what a
// consumer makes of (directory object, name).
//
// # Ordering
//
// The Events of one directory, and those of one object, are in the order in
// which the kernel made them. Between directories there is no promise, except
// that a directory's own create comes before events inside it.
package notify
