package stream

import (
	"errors"
	"sync/atomic"

	"github.com/heraldfs/heraldfs/protocol"
)

var (
	errPeer        = errors.New("not a peer that may connect")
	errCertificate = errors.New("TLS handshake")
)

// refusalReasons are why a connection ends before a subscription, in the order in which they are
// looked for.
var refusalReasons = [...]struct {
	name string
	err  error
}{
	{"busy", protocol.ErrBusy}, {"peer", errPeer}, {"certificate", errCertificate}, {"token", protocol.ErrAuth},
	{"version", protocol.ErrVersion}, {"root", protocol.ErrNoRoot}, {"forbidden", protocol.ErrForbidden}, {"origin", protocol.ErrNoOrigin},
	{"nonsense", protocol.ErrNotHerald}, {"nonsense", protocol.ErrMalformed}, {"nonsense", protocol.ErrFrameTooBig},
	{"nonsense", protocol.ErrProtocol},
}

// refusalOther is for a connection that broke, or did not get on in time.
const refusalOther = "broken"

// refusals counts them. The zero value is ready.
type refusals struct {
	n     [len(refusalReasons)]atomic.Uint64
	other atomic.Uint64
}

// count returns the name of err's reason.
func (r *refusals) count(err error) string {
	for i := range refusalReasons {
		if errors.Is(err, refusalReasons[i].err) {
			r.n[i].Add(1)
			return refusalReasons[i].name
		}
	}
	r.other.Add(1)
	return refusalOther
}

// Refused returns how many connections ended before a subscription, by reason.
func (s *Server) Refused() map[string]uint64 {
	m := map[string]uint64{refusalOther: s.refused.other.Load()}
	for i := range refusalReasons {
		m[refusalReasons[i].name] += s.refused.n[i].Load()
	}
	return m
}
