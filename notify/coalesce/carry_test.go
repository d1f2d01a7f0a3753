package coalesce

import (
	"fmt"
	"strings"
	"testing"

	"github.com/heraldfs/heraldfs/notify"
)

// TestLostInEarlierBatch reads to-and-fro renames in two goes: the second "a to b" was merged into the first before that was
// read, and what comes next proves it.
func TestLostInEarlierBatch(t *testing.T) {
	first := parseRaws(t, "RENAME 1/a > 1/b =5\nRENAME 1/b > 1/a =5")
	for _, test := range []struct{ name, next, want string }{
		{"renamed from there", "RENAME 1/b > 1/c =5", "rename 1/a > 1/b\nrename 1/b > 1/c"},
		{"deleted there", "DELETE 1/b =5", "rename 1/a > 1/b\ndelete 1/b"},
		{"its place was taken", "CREATE 1/a =6", "rename 1/a > 1/b\ncreate 1/a"},
		{"it is where it was", "RENAME 1/a > 1/c =5", "rename 1/a > 1/c"},
		{"renamed from there twice", "RENAME 1/b > 1/a =5\nRENAME 1/b > 1/c =5", "rename 1/a > 1/b\nrename 1/b > 1/a\nrename 1/a > 1/b\nrename 1/b > 1/c"},
		{"another object", "RENAME 1/b > 1/c =6", "rename 1/b > 1/c"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := New(Config{})
			c.Push(nil, first, epoch)
			c.Push(nil, parseRaws(t, "CREATE 1/x =7"), epoch)
			next := parseRaws(t, test.next)
			if got := plain(c.Push(nil, next, epoch)); got != lines(test.want) {
				t.Errorf("got\n%swant\n%s", got, lines(test.want))
			}
		})
	}
	c := New(Config{})
	c.Push(nil, first, epoch)
	c.Settled()
	if got, want := plain(c.Push(nil, parseRaws(t, "RENAME 1/b > 1/c =5"), epoch)), "rename 1/b > 1/c\n"; got != want {
		t.Errorf("after the disk was asked: got\n%s", got)
	}
}

// plain is story without what is to be verified.
func plain(events []notify.Event) string { return strings.ReplaceAll(story(events), " !", "") }

// TestCarriedIsBounded makes more to-and-fro renames than are kept.
func TestCarriedIsBounded(t *testing.T) {
	c := New(Config{})
	for i := range 10 * maxCarried {
		c.Push(nil, parseRaws(t, fmt.Sprintf("RENAME 1/a%d > 1/b =%d\nRENAME 1/b > 1/a%d =%d", i, i+10, i, i+10)), epoch)
	}
	if len(c.carried) > maxCarried {
		t.Errorf("%d records are carried, at most %d", len(c.carried), maxCarried)
	}
}
