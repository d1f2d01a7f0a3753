// Package fanotify is the watcher backend on fanotify(7).
//
// # Concepts
//
// Every group reports directories, names and targets by file handle
// (FAN_REPORT_DFID_NAME_TARGET), so an event needs no path and no open file. Where the file
// systems below the root accept it, one filesystem mark covers each, whatever the size of the
// tree, and events come for the whole file system: the consumer picks its own by
// directory object. Where one refuses (a btrfs subvolume, overlayfs, FUSE) the watcher
// also is a notify.Marker, and directories on such a file system are heard of once
// they were marked. Marking a directory that a filesystem mark covers costs a map lookup.
//
// File systems that are mounted below the root later get their mark when the
// mount table changes; OpMount is emitted after the mark is set, and what happened
// between the mount and the mark is for the consumer to find by looking.
//
// An inode mark that crosses to a file system without a fsid of its own (EXDEV)
// goes into a second group: order between the two is not kept.
//
// # Identity
//
// A filesystem mark on btrfs reports the fsid of the top for every subvolume, while
// statfs(2) in a subvolume gives another one. The parser undoes that, see btrfs.go.
//
// # Lock order
//
//	Watcher.mu   marks, groups, translations; held across fanotify_mark and one read of the queue
//
// Nothing is called back with mu held.
package fanotify
