// Package mountopt reads the option lists of mount(8) and fstab(5).
//
// An option is a word or word=value; a comma in a value is written "\,". Options
// that only concern the mount program (auto, nofail, x-systemd...) are accepted and
// passed over; an unknown one is an error, as a misspelt "ro" must not give a
// writable mount.
package mountopt

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Options is what a list of mount options says. Pairs holds those of heraldfs itself,
// "notify=on" as {"notify", "on"}, in their order.
type Options struct {
	ReadOnly           bool
	Flags              uintptr // MS_ flags besides read-only
	Suid, Dev          bool
	AllowOther         *bool
	DefaultPermissions *bool
	FSName             string
	// Data are words that the kernel's FUSE takes.
	Data  []string
	Pairs [][2]string
	// Sloppy passes over unknown options, as mount(8) -s asks.
	Sloppy bool
}

// ignored are options for the mount program, not for the file system.
var ignored = map[string]bool{
	"defaults": true, "auto": true, "noauto": true, "nofail": true, "_netdev": true,
	"user": true, "users": true, "nouser": true, "owner": true, "noowner": true,
	"group": true, "nogroup": true, "async": true, "rw": true, "loud": true, "silent": true,
	"nomand": true, "norelatime": true, "noiversion": true,
}

var flags = map[string]struct {
	set, clear uintptr
}{
	"noexec": {set: unix.MS_NOEXEC}, "exec": {clear: unix.MS_NOEXEC},
	"sync": {set: unix.MS_SYNCHRONOUS}, "dirsync": {set: unix.MS_DIRSYNC},
	"noatime": {set: unix.MS_NOATIME}, "atime": {clear: unix.MS_NOATIME},
	"nodiratime": {set: unix.MS_NODIRATIME}, "diratime": {clear: unix.MS_NODIRATIME},
	"relatime": {set: unix.MS_RELATIME}, "strictatime": {set: unix.MS_STRICTATIME},
	"lazytime": {set: unix.MS_LAZYTIME}, "nolazytime": {clear: unix.MS_LAZYTIME},
}

// Parse adds the options in list to o. own names the options that heraldfs itself
// knows, without their value.
func (o *Options) Parse(list string, own map[string]bool) error {
	for _, word := range split(list) {
		if err := o.word(word, own); err != nil {
			return err
		}
	}
	return nil
}

func (o *Options) word(word string, own map[string]bool) error {
	name, value, hasValue := strings.Cut(word, "=")
	name = strings.TrimSpace(name)
	if f, ok := flags[name]; ok {
		o.Flags = o.Flags&^f.clear | f.set
		return nil
	}
	yes := true
	switch {
	case name == "" || strings.HasPrefix(name, "x-") || strings.HasPrefix(name, "X-") || name == "comment" || name == "subtype":
	case name == "ro":
		o.ReadOnly = true
	case name == "rw":
		o.ReadOnly = false
	case name == "suid" || name == "nosuid":
		o.Suid = name == "suid"
	case name == "dev" || name == "nodev":
		o.Dev = name == "dev"
	case name == "allow_other":
		o.AllowOther = &yes
	case name == "allow_root":
		return fmt.Errorf("mount option %q: not offered; use allow_other", word)
	case name == "remount":
		return fmt.Errorf("mount option %q: not offered; unmount, and mount anew", word)
	case name == "default_permissions":
		o.DefaultPermissions = &yes
	case name == "fsname" && hasValue:
		o.FSName = value
	case (name == "max_read" || name == "blksize" || name == "context" || name == "rootcontext") && hasValue:
		o.Data = append(o.Data, word)
	case ignored[name]:
	case own[name] || own[strings.ReplaceAll(name, "_", "-")]: // options of mount(8) have underscores
		if !hasValue {
			value = "true"
		}
		o.Pairs = append(o.Pairs, [2]string{strings.ReplaceAll(name, "_", "-"), value})
	case !o.Sloppy:
		return fmt.Errorf("unknown mount option %q; `heraldfs mount --help` lists those of heraldfs", word)
	}
	return nil
}

// split cuts at commas that are not escaped and not in quotes.
func split(list string) []string {
	var words []string
	var b strings.Builder
	quoted := false
	for i := 0; i < len(list); i++ {
		switch c := list[i]; {
		case c == '\\' && i+1 < len(list):
			i++
			b.WriteByte(list[i])
		case c == '"':
			quoted = !quoted
		case c == ',' && !quoted:
			words = append(words, b.String())
			b.Reset()
		default:
			b.WriteByte(c)
		}
	}
	return append(words, b.String())
}
