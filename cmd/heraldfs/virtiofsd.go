package main

import (
	"path/filepath"
	"strings"
)

// virtiofsdName is the last part of the name under which heraldfs understands virtiofsd's command line, for
// programs that start a virtiofsd of their own.
const virtiofsdName = "virtiofsd"

// virtiofsdTranslation says what becomes of one of virtiofsd's options.
type virtiofsdTranslation struct {
	// value says that it has one.
	value bool
	// flag is ours for it; empty if it says nothing that we need to know.
	flag string
	// values maps those that we call otherwise.
	values map[string]string
}

// virtiofsdOptions are virtiofsd's of Rust and of C; those of -o have underscores there and hyphens here. What is not here
// is passed on, so that it is an error: it would change what the guest sees or may do.
func virtiofsdOptions() map[string]virtiofsdTranslation {
	level := map[string]string{"err": "error", "off": "error", "trace": "debug"}
	options := map[string]virtiofsdTranslation{
		"socket-path":           {value: true, flag: "--socket="},
		"fd":                    {value: true, flag: "--fd="},
		"socket-group":          {value: true, flag: "--socket-group="},
		"shared-dir":            {value: true},
		"share-dir":             {value: true},
		"source":                {value: true},
		"tag":                   {value: true, flag: "--tag="},
		"cache":                 {value: true, flag: "--cache=", values: map[string]string{"none": "never", "metadata": "auto"}},
		"sandbox":               {value: true, flag: "--sandbox="},
		"inode-file-handles":    {value: true, flag: "--inode-file-handles="},
		"announce-submounts":    {flag: "--announce-submounts=on"},
		"no-announce-submounts": {flag: "--announce-submounts=off"},
		"readonly":              {flag: "--read-only"},
		"log-level":             {value: true, flag: "--log-level=", values: level},
		"debug":                 {flag: "--log-level=debug"},
		"d":                     {flag: "--log-level=debug"},
	}
	for _, name := range []string{"thread-pool-size", "rlimit-nofile", "seccomp", "timeout", "migration-mode", "migration-on-error",
		"migration-verify-handles"} {
		options[name] = virtiofsdTranslation{value: true}
	}
	for _, name := range []string{"f", "syslog", "xattr", "posix-acl", "flock", "posix-lock", "readdirplus", "killpriv-v2",
		"writeback", "allow-direct-io", "security-label", "preserve-noatime"} {
		options[name] = virtiofsdTranslation{}
		options["no-"+name] = virtiofsdTranslation{}
	}
	return options
}

// isVirtiofsd reports whether we were started under virtiofsd's name.
func isVirtiofsd(argv0 string) bool {
	return strings.HasSuffix(filepath.Base(argv0), virtiofsdName)
}

// fromVirtiofsd translates the arguments of virtiofsd to ours. It ends with its machine, as virtiofsd does,
// and announces submounts only if told to.
func fromVirtiofsd(args []string) []string {
	options := virtiofsdOptions()
	out := []string{"virtiofs", "--once"}
	var dir []string
	submounts := "--announce-submounts=off"
	// add takes one option, and reports whether the word after it was its value.
	add := func(word, name, value string, hasValue bool, next []string) (used bool) {
		o, known := options[name]
		if !known {
			out = append(out, word)
			return false
		}
		if o.value && !hasValue && len(next) > 0 {
			value, used = next[0], true
		}
		if v, ok := o.values[value]; ok {
			value = v
		}
		switch {
		case name == "shared-dir" || name == "share-dir" || name == "source":
			dir = []string{value}
		case strings.HasPrefix(o.flag, "--announce"):
			submounts = o.flag
		case strings.HasSuffix(o.flag, "="):
			out = append(out, o.flag+value)
		case o.flag != "":
			out = append(out, o.flag)
		}
		return used
	}
	for i := 0; i < len(args); i++ {
		word := args[i]
		name, value, hasValue := strings.Cut(strings.TrimLeft(word, "-"), "=")
		switch {
		case word == "--print-capabilities":
			return []string{"virtiofs", "--print-capabilities"}
		case word == "-V" || word == "--version":
			return []string{"version"}
		case strings.HasPrefix(word, "-o"):
			list := strings.TrimPrefix(word, "-o")
			if list == "" && i+1 < len(args) {
				i++
				list = args[i]
			}
			for _, o := range splitCommas(list) {
				name, value, has := strings.Cut(o, "=")
				name = strings.ReplaceAll(name, "_", "-")
				add("--"+strings.ReplaceAll(o, "_", "-"), name, value, has || !options[name].value, nil)
			}
		case strings.HasPrefix(word, "-"):
			if add(word, name, value, hasValue, args[i+1:]) {
				i++
			}
		default:
			out = append(out, word)
		}
	}
	return append(append(out, submounts), dir...)
}

// splitCommas splits at commas; two stand for one in the text.
func splitCommas(s string) []string {
	var parts []string
	part := ""
	for len(s) > 0 {
		switch {
		case strings.HasPrefix(s, ",,"):
			part += ","
			s = s[2:]
		case s[0] == ',':
			parts, part = append(parts, part), ""
			s = s[1:]
		default:
			part += s[:1]
			s = s[1:]
		}
	}
	return append(parts, part)
}
