// Package nettest has the tests of `heraldfs serve` and its subscribers over a network that fails. The
// server runs in one network namespace and the subscribers, a mount among them, in another one, with TLS and certificates
// on both sides.
//
// # The network
//
// There are two kinds of link between the namespaces. A veth pair is cut by taking it down: packets
// vanish, nobody is told, and both sides have to find out. The other link is two tun devices with the test
// in between: it delays each packet by another time, so that they overtake each other, and loses and
// doubles some. (The kernel's netem does that too, where it is built in; here it works everywhere.)
//
// # The proof
//
// The load makes files with numbers in their names, one after the other in one directory. A story is what
// one subscriber was told, over all its connections: each sequence in exactly one range or gap, each
// file once, and where a number is missing there must be a gap in that very place. Whatever is killed or cut,
// nothing is lost without a record.
package nettest
