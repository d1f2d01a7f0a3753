// Package coalesce turns kernel notification records ([notify.Raw]) into
// single operations ([notify.Event]): it pairs the halves of an inotify rename,
// takes merged fanotify masks apart, puts their operations back into the order
// in which they must have happened, recognises exchanges, and folds
// repetitions. It is pure: it has no clock and no descriptor, and equal input
// gives equal output.
//
// A Coalescer is for one kernel queue and one goroutine.
//
// # Batches
//
// One Push is one batch. What the kernel merged is, but for renames, only recognised within a
// batch, so the reader gathers everything up to an empty queue before it
// pushes. Nothing of a fanotify batch is held back: the only records that are told in a later
// Push are inotify halves and what waits behind them.
//
// # inotify
//
// IN_MOVED_FROM and IN_MOVED_TO are paired by cookie wherever the second
// stands. The rename is told where IN_MOVED_TO stood. While a half waits, later
// records of its directory wait behind it, and those of the directory that is being moved and of all
// below it; all others pass. Which directory that is, the backend tells by an IN_MOVE_SELF record with the
// cookie of the halves, which the kernel queues before anything that is done after the rename; what is below, by
// Raw.Moved. vfs_rename holds the
// locks of both directories from before the first half until after the second, so a
// later record about an entry (create, delete, move) of the same directory proves
// that no second half will come, and the first is told as a move out at once.
// Without such proof it is told after Config.MoveWait. A second half whose IN_MOVE_SELF tells of a directory that a
// waiting half is about proves it, too: what comes back has left.
//
// # Merged fanotify masks
//
// fanotify ORs a new record into an older one with the same process, directory,
// name, object, ISDIR bit and RENAME-or-not. So the position of a record is that of its
// first operation, and its other operations happened there or later. They
// are told in the order create, open, access, modify, attrib, close, delete, at the
// position of the record, except where names and objects prove otherwise. With
// O the record's object and n its entry (directory and name), in one batch:
//
//   - DELETE n was possible only while n was O. Each rename of O away from n
//     ended such a time, so a merged DELETE belongs after the last rename of
//     O to n. If O is known by one name only, its DELETE ended it, and
//     belongs after every record of O.
//   - A link to O made under another name needed a living O: a merged DELETE of
//     one link belongs after the CREATE of the others.
//   - Another object that appeared at n (CREATE, RENAME) proves that the DELETE
//     was before it. So does the removal of the directory.
//   - A directory's merged DELETE belongs after all that happened in it, the
//     merged DELETEs in it included.
//   - If n was O before a record that has CREATE and DELETE, or if O is
//     renamed away from n later and never back, then DELETE was first.
//   - A merged DELETE_SELF belongs after every other record of O but its DELETE.
//   - MODIFY, ATTRIB, OPEN and CLOSE never move: their record's position is a
//     time at which they were possible, and nothing says it was not that one.
//
// Equal renames of one object merge too (a to b, b to a, a to b reads as
// a to b, b to a). The lost one is told again when an entry record that needed the
// lock of the directory proves it (a DELETE or RENAME of O at b, a CREATE of another
// object at a, a RENAME of another object to b that ended O) and only one chain of O's renames leads there. MODIFY and its
// kind prove nothing, because they are queued without the directory's lock, with a
// name that may be old by then. A rename may have been merged into one that was read in an earlier batch: of objects that
// were renamed to and fro, and of which nothing else was told, the renames are kept for the next batches, until
// the consumer may have looked at the disk (Settled).
//
// What a merge has hidden without trace is not guessed: the last event of each
// name that may be concerned has Event.Verify set. That is so for the names of an
// object that was renamed more than once in the batch, or created and deleted, or deleted
// before a rename, or linked and then renamed or overwritten.
//
// # Exchanges
//
// RENAME_EXCHANGE tells of two renames, a to b and b to a, under one hold of both
// directory locks: no other entry record of the two directories stands between. With
// objects (fanotify) they are an exchange if the objects differ and nothing put the second
// object at b in between; a plain rename back moves the same object. inotify names no
// objects: the two pairs are an exchange for certain only if one is a directory and the
// other is not, since a plain rename back looks the same. Otherwise two renames are told,
// and the second has Verify set, as has one whose first part was in an earlier batch.
//
// # Bounds
//
// At most Config.Limit records are held; then everything held is told in order.
// The tables for merged batches are as large as the largest of the latest batches, and
// are given back when a batch was larger than the limit.
package coalesce
