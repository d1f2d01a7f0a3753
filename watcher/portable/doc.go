// Package portable watches directory trees with github.com/fsnotify/fsnotify: on macOS and the BSDs (kqueue), on
// Windows (ReadDirectoryChangesW) and, for tests and comparison, on Linux (inotify).
//
// # What it adds
//
// fsnotify hears of single directories, by path. An engine keeps a table of every entry with its identity
// (device and inode, or volume and file index), and makes of the notifications:
//
//   - recursion. A new directory is watched, then listed. What the listing finds is told as created,
//     unless its own notification has been, or will be, told.
//   - one Rename for the two halves. They are paired by the old name, where fsnotify knows it, or else by
//     identity, within Options.PairWait. A half that stays alone is a rename out of the tree.
//   - right paths below a renamed directory: every directory there is watched anew under its new path, and
//     compared with the table, since fsnotify hears nothing in between or says the old path.
//   - what was lost in an overflow: Overflow, the differences that the table shows, then Rescan.
//
// # Ordering
//
// A notification is believed, and the disk is asked what it was about. By then the disk may be further on
// than the notifications are. So an entry that was entered from the disk is marked as ahead until a
// fence (a file in a private directory that is watched as well) has been heard of, and a notification about it that
// the disk contradicts until then is an old one. A name about which notification and disk do not agree is looked at
// again when nothing is queued.
//
// fsnotify's notifications are in order with inotify, and within one directory with Windows. kqueue has no order.
//
// # Goroutines
//
// One goroutine drains fsnotify into a bounded queue, so that the kernel's does not fill; Run does
// everything else. Run's emit must not call Close, which waits for Run.
package portable
