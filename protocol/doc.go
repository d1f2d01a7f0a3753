// Package protocol is heraldfs's stream protocol: what a server that watches a
// directory and a subscriber that wants its changes say to each other.
// docs/protocol.md specifies it byte by byte, for other languages; this is the
// Go form.
//
// # Concepts
//
// A frame is a length in four bytes and a msgpack value: an array of the
// message's type and a map of its fields. An Encoder writes frames, a Decoder
// reads them, and a Conn, which Client or Server make of a net.Conn, is both
// with the handshake done.
//
// A root is a directory that the server shows under a name. Its changes are
// numbered from 1: the sequence. Each Events message says which range of the sequence it
// covers; what is missing in that range was filtered or folded away because the
// subscriber allowed it. The ranges of consecutive Events and Gap messages touch,
// so that a subscriber can prove that it lost nothing. A Gap is a loss that
// is told: it names the directory to compare again.
//
// # Hostile peers
//
// No length that a peer claims is believed: a frame has a cap, and inside it each
// length is checked against the bytes that are left, before anything is
// allocated. Maps, arrays and strings are therefore decoded here and not by the
// msgpack library. Unknown fields are skipped without recursion. Until the
// handshake is done, the cap is MaxHelloFrame and a deadline runs.
//
// Names are bytes: any byte but NUL and slash.
//
// # Locks
//
// A Conn allows one reader and any number of writers at a time.
//
//	Conn.wmu (one frame is written at a time)
package protocol
