package protocol

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"hash"
	"sync"

	"github.com/heraldfs/heraldfs/notify"
)

// MACSize is the length of an Identity's MAC in bytes: HMAC-SHA256, truncated.
const MACSize = 16

// Sealer makes Identities of host objects under a server's secret, and tells its own
// from made-up ones. It is safe for concurrent use.
type Sealer struct {
	mu  sync.Mutex
	mac hash.Hash // reset and reused
	buf []byte
	sum [sha256.Size]byte
}

// NewSealer returns a Sealer. The secret is at least 16 bytes that no peer knows.
func NewSealer(secret []byte) *Sealer {
	return &Sealer{mac: hmac.New(sha256.New, secret)}
}

// Seal returns the identity of an object, and the zero Identity for the zero Object. An
// object that has no file handle has none either: its number can be recycled.
func (s *Sealer) Seal(obj notify.Object) Identity {
	if obj.IsZero() || obj.Type == notify.TypeInode {
		return Identity{}
	}
	id := Identity{FS: obj.FS, Type: obj.Type, Handle: obj.Handle}
	s.mu.Lock()
	copy(id.MAC[:], s.sumLocked(&id))
	s.mu.Unlock()
	return id
}

// Open returns the object that id names, and false if this secret did not seal it.
func (s *Sealer) Open(id Identity) (notify.Object, bool) {
	s.mu.Lock()
	ok := subtle.ConstantTimeCompare(s.sumLocked(&id)[:MACSize], id.MAC[:]) == 1
	s.mu.Unlock()
	if !ok {
		return notify.Object{}, false
	}
	return notify.Object{FS: id.FS, Type: id.Type, Handle: id.Handle}, true
}

func (s *Sealer) sumLocked(id *Identity) []byte {
	s.buf = binary.BigEndian.AppendUint64(s.buf[:0], id.FS)
	s.buf = binary.BigEndian.AppendUint32(s.buf, uint32(id.Type))
	s.buf = append(s.buf, id.Handle...)
	s.mac.Reset()
	s.mac.Write(s.buf)
	return s.mac.Sum(s.sum[:0])
}
