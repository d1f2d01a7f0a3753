package passthrough

import "golang.org/x/sys/unix"

// Names calls yield with every name in a directory that the guest knows, "." and ".."
// left out, until it returns false.
func (fs *FS) Names(nodeid uint64, yield func(name string, isDir bool) bool) error {
	n, err := fs.node(nodeid)
	if err != nil {
		return err
	}
	s, err := fs.openStream(n)
	if err != nil {
		return err
	}
	defer s.fd.Release()
	_, err = s.each(0, func(d *dirent) bool {
		name := string(d.name)
		return name == "." || name == ".." || yield(name, d.typ == unix.DT_DIR)
	})
	return err
}

// WithFD calls use with an O_PATH descriptor of a node, which is good during the call.
func (fs *FS) WithFD(nodeid uint64, use func(fd int) error) error {
	n, err := fs.node(nodeid)
	if err != nil {
		return err
	}
	fd, err := fs.ref(n)
	if err != nil {
		return err
	}
	defer fd.Release()
	return use(fd.Int())
}

// Nodes returns how many nodes there are.
func (fs *FS) Nodes() int { return fs.nodes.len() }

// Crowded returns a channel that is signalled while there are more than bound nodes and another comes. It is called before
// the first request.
func (fs *FS) Crowded(bound int) <-chan struct{} {
	fs.nodes.bound, fs.nodes.crowded = bound, make(chan struct{}, 1)
	return fs.nodes.crowded
}

// Oldest appends to dst up to count nodeids above after, those that have been known for longest first.
func (fs *FS) Oldest(dst []uint64, after uint64, count int) []uint64 {
	return fs.nodes.oldest(dst, after, count)
}

// MountID tells nodes of one file system apart that are seen through several
// mounts: equal numbers are the same mount.
func (fs *FS) MountID(nodeid uint64) uint64 {
	if n := fs.nodes.get(nodeid); n != nil {
		return n.dev.mnt.id
	}
	return 0
}

// Ref raises the lookup count of a node that is known, and reports whether it is. The
// caller undoes it with Forget(nodeid, 1).
func (fs *FS) Ref(nodeid uint64) bool {
	if nodeid == rootID {
		return true
	}
	return fs.nodes.ref(nodeid)
}
