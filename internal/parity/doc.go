// Package parity holds the differential test of a guest mount: random operations on
// the host, and what inotify watches heard of them natively and through the mount,
// compared in order, with names, masks, ISDIR and cookie pairs.
//
// The mount is a process of its own, as echo is told by process. Three paces: one
// operation at a time, each fenced and followed by a look at the contents through the
// mount; paced, with pauses shorter than a replay; and full speed.
//
// HERALDFS_PARITY=full runs the 20 seeds of 2,000 operations of docs/benchmarks.md; the
// default is a sample of that.
package parity
