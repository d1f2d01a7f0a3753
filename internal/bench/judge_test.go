package main

import (
	"reflect"
	"testing"
)

func TestJudge(t *testing.T) {
	c := func(path string) told { return told{kind: 'c', path: path} }
	d := func(path string) told { return told{kind: 'd', path: path} }
	r := func(from, to string) told { return told{kind: 'r', path: from, to: to} }
	for _, tc := range []struct {
		name         string
		truth, heard []told
		want         score
	}{
		{"right", []told{c("a"), r("a", "b"), d("b")}, []told{c("a"), r("a", "b"), d("b")}, score{}},
		{"nothing", []told{c("a"), r("a", "b")}, nil, score{missed: 2}},
		{"halves", []told{r("a", "b")}, []told{d("a"), c("b")}, score{unpaired: 1}},
		{"one half", []told{r("a", "b")}, []told{c("b")}, score{unpaired: 1}},
		{"twice", []told{c("a")}, []told{c("a"), c("a"), c("a")}, score{duplicate: 2}},
		{"elsewhere", []told{c("new/a")}, []told{c("old/a")}, score{missed: 1, wrong: 1}},
		{"a half is no create", []told{c("b"), r("a", "b")}, []told{c("b")}, score{missed: 1}},
	} {
		got := judge(tc.truth, tc.heard)
		got.first = nil
		if !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
}

func TestParseListeners(t *testing.T) {
	parse := parseTemplate("/d")
	var got []told
	for _, line := range []string{"CREATE,ISDIR|0|/d/a", "MOVED_FROM|1|/d/a/x|y", "MOVED_TO|1|/d/z", "DELETE|0|/d/z", "[fid=1]", "ATTRIB|0|/d/a"} {
		got = append(got, parse(line)...)
	}
	want := []told{{kind: 'c', path: "a"}, {kind: 'r', path: "a/x|y", to: "z"}, {kind: 'd', path: "z"}}
	if p := pair(got); !reflect.DeepEqual(p, want) {
		t.Errorf("%v, want %v", p, want)
	}
	got = parseWatchman(`{"files":[{"name":"a","exists":true,"new":true},{"name":"b","exists":true},{"name":"c","exists":false}]}`)
	if want := []told{{kind: 'c', path: "a"}, {kind: 'd', path: "c"}}; !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
