// Package ignore decides which names are left out, by patterns with the meaning that gitignore(5) gives
// them: the last pattern that matches counts, "!" takes back, a slash before the end anchors the pattern to
// its directory, a slash at the end means directories only, and "**" stands for any number of directories.
// What is below a directory that is left out is left out too; no pattern brings it back.
//
// Rules are the patterns of one file. A Scope is what holds in one directory: the patterns of the
// command line, which come first, then the files of the directory and of those above it, the nearest
// first. Names are bytes, and upper and lower case differ on every system.
//
// Everything here is immutable once made, and may be used by several goroutines.
package ignore
