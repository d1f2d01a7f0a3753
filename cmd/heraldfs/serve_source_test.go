//go:build linux

package main

import (
	"testing"

	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/watcher/tree"
)

// TestOps: each operation of the protocol has one record type, and the other way round.
func TestOps(t *testing.T) {
	for op := protocol.OpCreate; op.Known(); op++ {
		if typ := typeOf(op); typ == 0 || opOf(typ) != op || typ.String() != op.String() {
			t.Errorf("%v is %v, which is %v", op, typ, opOf(typ))
		}
	}
	for _, typ := range []tree.Type{0, tree.TypeReady, tree.TypeRescan, 200} {
		if op := opOf(typ); op != 0 {
			t.Errorf("%v has the operation %v", typ, op)
		}
	}
	if typ := typeOf(77); typ != 0 {
		t.Errorf("an unknown operation is %v", typ)
	}
}
