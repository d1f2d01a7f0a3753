package main

import (
	"path/filepath"
	"strings"
)

// helperArgs returns the command line, without the program's name, that argv stands for.
// mount(8) calls a program for a type of file system in two ways:
//
//	mount.TYPE SOURCE MOUNTPOINT [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]   from /sbin
//	TYPE SOURCE MOUNTPOINT [-o OPTIONS]                 by mount.fuse3, for fuse.TYPE
//
// Both are `heraldfs mount --daemon`. SOURCE is a path with a slash in it by then, which no
// command of ours has. Anything else comes back as it is.
func helperArgs(argv []string) []string {
	if len(argv) == 0 {
		return nil
	}
	rest := argv[1:]
	if isVirtiofsd(argv[0]) {
		return fromVirtiofsd(rest)
	}
	if strings.HasPrefix(filepath.Base(argv[0]), "mount.") {
		return append([]string{"mount", "--daemon"}, fromMount8(rest)...)
	}
	if len(rest) >= 2 && isPath(rest[0]) && isPath(rest[1]) {
		return append([]string{"mount", "--daemon"}, fromMount8(rest)...)
	}
	return rest
}

func isPath(word string) bool {
	return !strings.HasPrefix(word, "-") && strings.Contains(word, "/")
}

// fromMount8 translates mount(8)'s short flags, which can be written together.
func fromMount8(args []string) []string {
	var out []string
	for i := 0; i < len(args); i++ {
		word := args[i]
		switch {
		case word == "-t" || word == "-o":
			if i++; word == "-o" && i < len(args) {
				out = append(out, "-o", args[i])
			} else if word == "-o" {
				out = append(out, word)
			}
		case len(word) > 1 && strings.Trim(word[1:], "sfnv") == "" && word[0] == '-':
			// -n: there is no mtab to leave alone. -v: nothing to add.
			if strings.Contains(word, "s") {
				out = append(out, "--sloppy")
			}
			if strings.Contains(word, "f") {
				out = append(out, "--dry-run")
			}
		default:
			out = append(out, word)
		}
	}
	return out
}
