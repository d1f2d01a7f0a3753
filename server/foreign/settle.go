package foreign

import (
	"errors"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/server/passthrough"
)

const (
	firstPoll = time.Millisecond
	lastPoll  = 50 * time.Millisecond
	// hopeless is how many events in a row may be late before the next one is looked at
	// once only: a share that never shows what the host has would make every event late.
	hopeless = 8
)

// settler waits for SOURCE to show what the host has. It is the replayer's.
type settler struct {
	share *Share
	// fuse says that SOURCE is a FUSE mount: of those we know how to make the kernel ask again.
	fuse bool
	// late counts events that were late in a row.
	late int
	// inodes says whether SOURCE shows the host's inode numbers: 0 not known, 1 yes, -1 no.
	inodes atomic.Int32
	// missed counts what speaks against it.
	missed int
}

func (t *settler) init(s *Share) {
	t.share = s
	_ = s.fs.WithFD(rootID, func(fd int) error {
		var st unix.Statfs_t
		err := unix.Fstatfs(fd, &st)
		t.fuse = err == nil && uint32(st.Type) == unix.FUSE_SUPER_MAGIC
		return err
	})
}

// inodesAgree reports whether inode numbers here are known to be those of the host.
func (t *settler) inodesAgree() bool { return t.inodes.Load() > 0 }

// Settle implements replay.Resolver.
func (s *Share) Settle(ev *notify.Event) {
	if s.objects.exact() {
		return // one file system: there is no cache between
	}
	s.cur.settled = true
	rm := ev.Remote
	deadline := rm.Arrived.Add(s.opts.SettleTimeout)
	if s.settler.late >= hopeless {
		deadline = time.Time{}
	}
	content := !ev.IsDir && (ev.Op == notify.OpModify || ev.Op == notify.OpCloseWrite)
	ok := s.settler.place(s.cur.dir, ev.Name, rm.From, content, deadline)
	if ev.Op == notify.OpRename || ev.Op == notify.OpExchange {
		ok = s.settler.place(s.cur.newDir, ev.NewName, rm.To, false, deadline) && ok
	}
	if ok {
		s.settler.late = 0
		return
	}
	s.settler.late++
	s.stats.Late.Add(1)
	s.log.Warn("event goes out ahead of its content", slog.String("event", ev.String()), slog.String("dir", rm.DirPath))
	if s.settler.late == hopeless {
		s.log.Warn("the share does not show what the host has; events will not wait for it until it does")
	}
}

// place waits for one name. What the guest or the host knows nothing of is not waited for.
func (t *settler) place(dir uint64, name string, want notify.State, content bool, deadline time.Time) bool {
	if dir == 0 || name == "" || name == "." {
		return true
	}
	if !want.Known {
		if content {
			t.look(dir, name, want, content, false)
		}
		return true
	}
	for pause := firstPoll; ; pause = min(2*pause, lastPoll) {
		if t.look(dir, name, want, content, true) {
			return true
		}
		left := time.Until(deadline)
		if left <= 0 {
			return false
		}
		timer := time.NewTimer(min(pause, left))
		select {
		case <-timer.C:
		case <-t.share.done.Done():
			timer.Stop()
			return true
		}
	}
}

// look looks once, makes the kernel ask the file server again if the answer is old, and looks
// again.
func (t *settler) look(dir uint64, name string, want notify.State, content, wait bool) (settled bool) {
	err := t.share.fs.WithFD(dir, func(fd int) error {
		switch t.compare(fd, name, want, content) {
		case shows:
			settled = true
			return nil
		case later:
			return nil
		}
		if !wait {
			return nil
		}
		sure := t.ask(fd, name, want.Exists)
		switch t.compare(fd, name, want, content) {
		case shows:
			settled = true
		case other:
			// The file server itself says so: something has happened since, and will be told.
			settled = sure
			if sure {
				t.disagree(fd, name, want)
			}
		}
		return nil
	})
	// A directory that is gone shows nothing any more.
	return settled || err != nil
}

// answer is how what is seen relates to what was told.
type answer uint8

const (
	shows answer = iota
	later        // the right object, with attributes of before
	other        // another object, or none, or one where there should be none
)

func (t *settler) compare(dir int, name string, want notify.State, content bool) answer {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		if want.Known && want.Exists {
			return other
		}
		return shows
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := passthrough.FreshStat(fd, "", &st); err != nil {
		return other // a name that the kernel remembers, of something that is gone
	}
	if content && st.Mode&unix.S_IFMT == unix.S_IFREG {
		dropPages(fd)
	}
	if !want.Known {
		return shows
	}
	if !want.Exists {
		return other
	}
	equal := st.Ctim.Nano() == want.Ctime && st.Mtim.Nano() == want.Mtime && uint64(st.Size) == want.Size
	if st.Ino != want.Ino {
		if t.inodes.Load() >= 0 {
			return other
		}
	} else if equal && t.inodes.Load() == 0 {
		t.inodes.Store(1)
	}
	if equal || !olderThan(&st, want) {
		return shows
	}
	return later
}

// disagree takes note that the file server shows what the host has under another inode number.
func (t *settler) disagree(dir int, name string, want notify.State) {
	var st unix.Stat_t
	if !want.Exists || passthrough.FreshStat(dir, name, &st) != nil || st.Ino == want.Ino ||
		st.Ctim.Nano() != want.Ctime || uint64(st.Size) != want.Size {
		return
	}
	if t.missed++; t.missed >= 2 && t.inodes.Swap(-1) >= 0 {
		t.share.log.Info("the share has inode numbers of its own: objects are told apart by name")
	}
}

// olderThan compares change times as exactly as the share has them.
func olderThan(st *unix.Stat_t, want notify.State) bool {
	unit := int64(1)
	for _, u := range []int64{int64(time.Second), int64(time.Millisecond), int64(time.Microsecond), 100} {
		if st.Ctim.Nano()%u == 0 {
			unit = u
			break
		}
	}
	return st.Ctim.Nano() < want.Ctime/unit*unit
}

// dropPages has the pages of a file forgotten that its file system has cached, also by an open and close
// as NFS and FUSE go by.
func dropPages(fd int) {
	r, err := sys.Reopen(fd, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC)
	if err != nil {
		return // then nobody of us reads it
	}
	_ = unix.Fadvise(r, 0, 0, unix.FADV_DONTNEED)
	_ = unix.Close(r)
}

// ask makes the kernel ask the file server for a name that it may remember. sure says that it has.
//
// A name that is remembered to exist is looked up anew as the target of a rename (LOOKUP_RENAME_TARGET). The
// rename is of the name to itself, without replacing: it does nothing wherever it gets
// to. A name that is remembered to be absent comes with a listing (READDIRPLUS).
func (t *settler) ask(dir int, name string, exists bool) (sure bool) {
	switch err := unix.Renameat2(dir, name, dir, name, unix.RENAME_NOREPLACE); {
	case errors.Is(err, unix.EEXIST):
		return t.fuse
	case errors.Is(err, unix.ENOENT):
	default:
		return false
	}
	if !exists {
		return t.fuse
	}
	r, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	d := os.NewFile(uintptr(r), ".")
	defer d.Close()
	for {
		names, err := d.Readdirnames(1024)
		for _, n := range names {
			if n == name {
				return false // it is there: the next look will find it
			}
		}
		if err != nil || len(names) == 0 {
			return t.fuse
		}
	}
}

// lostDir reports whether a directory of SOURCE that the guest knows does not answer.
func (t *settler) lostDir(dir uint64) bool {
	return t.share.fs.WithFD(dir, func(fd int) error {
		var st unix.Stat_t
		return passthrough.FreshStat(fd, "", &st)
	}) != nil
}

// refresh has a name looked up anew if SOURCE may remember something else, for who is about to
// look without having settled.
func (t *settler) refresh(dir uint64, name string) {
	c := &t.share.cur
	if !t.fuse || c.settled && (c.dir == dir && c.ev.Name == name || c.newDir == dir && c.ev.NewName == name) {
		return
	}
	_ = t.share.fs.WithFD(dir, func(fd int) error {
		t.ask(fd, name, false)
		return nil
	})
}
