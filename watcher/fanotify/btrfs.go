package fanotify

import (
	"encoding/binary"

	"github.com/heraldfs/heraldfs/notify"
)

// btrfs tells the subvolume in both names of an object. In the fsid it XORs the subvolume's
// id into the volume's (btrfs_statfs in fs/btrfs/super.c, halves swapped), and its handle
// types begin with
//
//	struct btrfs_fid {
//		u64 objectid;
//		u64 root_objectid;
//		u32 gen;
//		...
//	};
//
// so from the fsid of one subvolume those of the others can be computed.
const (
	btrfsFirstType = 0x4d // FILEID_BTRFS_WITHOUT_PARENT
	btrfsLastType  = 0x4f // FILEID_BTRFS_WITH_PARENT_ROOT
	btrfsFidLen    = 20
)

// btrfsRoot returns the id of the subvolume that o is in.
func btrfsRoot(o notify.Object) (uint64, bool) {
	if o.Type < btrfsFirstType || o.Type > btrfsLastType || len(o.Handle) < btrfsFidLen {
		return 0, false
	}
	return binary.NativeEndian.Uint64([]byte(o.Handle[8:16])), true
}

// btrfsSubvolume gives o, reported with the fsid of subvolume top, the fsid of its own.
func btrfsSubvolume(o notify.Object, top uint64) notify.Object {
	if root, ok := btrfsRoot(o); ok {
		o.FS ^= foldRoot(root) ^ foldRoot(top)
	}
	return o
}

// foldRoot places a subvolume id as it is XORed into Object.FS: high half into
// the first word.
func foldRoot(id uint64) uint64 { return id>>32 | id<<32 }

// coverKey is the same for all objects on one file system, whatever the subvolume.
func coverKey(o notify.Object) uint64 {
	if root, ok := btrfsRoot(o); ok {
		return o.FS ^ foldRoot(root)
	}
	return o.FS
}
