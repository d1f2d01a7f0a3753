package replay

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

// soon bounds what must not hang.
func soon(t testing.TB) context.Context {
	ctx, stop := context.WithTimeout(context.Background(), 5*time.Second)
	t.Cleanup(stop)
	return ctx
}

// TestSyncAttr reads the attribute from many threads while events are told: each reading returns
// after what was emitted before it.
func TestSyncAttr(t *testing.T) {
	b := newBed(t, before(t))
	b.watch("d")
	var buf [8]byte
	if _, err := unix.Getxattr(b.mnt, SyncAttr, buf[:1]); !errors.Is(err, unix.ERANGE) {
		t.Errorf("a buffer that is too small: %v", err)
	}
	var readers sync.WaitGroup
	for i := range 20 {
		name := "f" + strconv.Itoa(i)
		b.write("d/"+name, name)
		ev := b.ev(notify.OpCreate, "d", name, b.obj("d/"+name))
		b.src.batches <- []notify.Event{ev}
		<-b.src.emitted
		readers.Go(func() {
			var buf [8]byte
			n, err := unix.Getxattr(b.mnt, SyncAttr, buf[:])
			for errors.Is(err, unix.EINTR) {
				n, err = unix.Getxattr(b.mnt, SyncAttr, buf[:])
			}
			if err != nil || string(buf[:n]) != "ok" {
				t.Errorf("sync: %q, %v", buf[:max(n, 0)], err)
			}
			if got := b.fs.Stats().Replayed.Load(); got < uint64(i+1) {
				t.Errorf("synced when %d of %d events were replayed", got, i+1)
			}
		})
	}
	readers.Wait()
	if got := b.heard(); len(got) != 20 {
		t.Errorf("heard %q", got)
	}
	if n := b.fs.Stats().Replayed.Load(); n != 20 {
		t.Errorf("%d events replayed, must be 20", n)
	}
}

// TestSyncEnds waits while the replayer ends: nobody hangs, and nobody is told that all is well
// who did not get what he waited for.
func TestSyncEnds(t *testing.T) {
	b := newBed(t, before(t))
	b.close()
	if err := b.r.Sync(soon(t)); !errors.Is(err, notify.ErrClosed) {
		t.Errorf("Sync after the end: %v", err)
	}
	if err := b.r.Deliver([]notify.Event{{Op: notify.OpModify}}); !errors.Is(err, notify.ErrClosed) {
		t.Errorf("Deliver after the end: %v", err)
	}
	if _, st := b.fs.answerSync(nil, make([]byte, 8)); st.Ok() {
		t.Error("the attribute still says ok")
	}
}

// TestSyncLosesItsReplayer has waiters in the queue when the replayer ends.
func TestSyncLosesItsReplayer(t *testing.T) {
	for _, ended := range []string{"taken", "not taken"} {
		q := newTestQueue(t, 10)
		r := &Replayer{q: q, cfg: Config{Source: newScript()}}
		w, err := q.wait()
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan error, 1)
		go func() { got <- w.done(soon(t)) }()
		if ended == "taken" {
			q.close()
			if _, ok := q.take(nil, 0); ok {
				t.Error("a closed queue gives something")
			}
		} else {
			q.abandon()
		}
		if err := <-got; !errors.Is(err, notify.ErrClosed) {
			t.Errorf("waiting until a queue is closed, %s: %v", ended, err)
		}
		if err := r.Sync(soon(t)); !errors.Is(err, notify.ErrClosed) {
			t.Errorf("Sync after the end: %v", err)
		}
	}
}

// TestSyncHeedsItsContext does not wait for ever for a replayer that is busy.
func TestSyncHeedsItsContext(t *testing.T) {
	r := &Replayer{q: newTestQueue(t, 10), cfg: Config{Source: newScript()}}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.Sync(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Sync: %v", err)
	}
}
