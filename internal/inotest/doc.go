// Package inotest records inotify events for tests, in the kernel's order, and
// compares two recordings.
//
// A [Recorder] is one inotify instance with any number of watches, each with a label:
// the name that a directory or file has in the test, the same in a native recording
// and in a guest's. A goroutine reads all the time, so that the queue never
// overflows, and [Recorder.WaitFor] returns when a sentinel that the test made has come by.
// The queue of an instance is in order across its watches, so everything that was
// queued before the sentinel has been read then.
//
// # What is compared
//
// Order is promised for one directory and not between directories, and inotify itself
// merges an event with an identical one right before it if that has not been read yet. So [Compare] looks at
// each label by itself with identical neighbours folded. Cookies are different numbers on each
// side: a half of a rename is compared by where its other half is.
package inotest
