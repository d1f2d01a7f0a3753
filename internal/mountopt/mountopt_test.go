package mountopt

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestParse(t *testing.T) {
	own := map[string]bool{"notify": true, "mask": true}
	yes := true
	for _, c := range []struct {
		in   string
		want Options
	}{
		{"", Options{}},
		{"defaults,_netdev,nofail,x-systemd.automount", Options{}},
		{"ro,nosuid,nodev,noexec", Options{ReadOnly: true, Flags: unix.MS_NOEXEC}},
		{"noexec,exec,dev,suid", Options{Dev: true, Suid: true}},
		{"ro,rw", Options{}},
		{"allow_other,default_permissions", Options{AllowOther: &yes, DefaultPermissions: &yes}},
		{`notify=off,mask=create\,delete`, Options{Pairs: [][2]string{{"notify", "off"}, {"mask", "create,delete"}}}},
		{`fsname="a,b",max_read=4096`, Options{FSName: "a,b", Data: []string{"max_read=4096"}}},
		{"notify", Options{Pairs: [][2]string{{"notify", "true"}}}},
	} {
		var got Options
		if err := got.Parse(c.in, own); err != nil {
			t.Errorf("%q: %v", c.in, err)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%q: %s", c.in, d)
		}
	}
}

func TestParseUnknown(t *testing.T) {
	for _, in := range []string{"readonly", "notfy=on", "allow_root", "remount", "mask2=x"} {
		var o Options
		err := o.Parse(in, map[string]bool{"notify": true, "mask": true})
		if err == nil || !strings.Contains(err.Error(), in) {
			t.Errorf("%q: got %v", in, err)
		}
	}
}

func TestParseSloppy(t *testing.T) {
	o := Options{Sloppy: true}
	if err := o.Parse("ro,readonly,what=ever", nil); err != nil {
		t.Fatal(err)
	}
	if !o.ReadOnly {
		t.Error("ro was passed over")
	}
}
