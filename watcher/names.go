package watcher

// The values of Watcher.Backend; Options.Backend takes Auto, Fanotify and Inotify. Portable is that of package
// watcher/portable, which names paths, not handles: package tree has it.
const (
	Auto          = "auto"
	Fanotify      = "fanotify"
	Inotify       = "inotify"
	FanotifyInode = "fanotify-inode"
	Portable      = "portable"
)
