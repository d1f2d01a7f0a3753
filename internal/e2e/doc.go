// Package e2e tests the heraldfs program as its users run it: real mounts, real
// clients, real signals. It holds nothing but tests.
//
// # How
//
// TestMain builds the program once; HERALDFS_BIN names one that is built already.
// Every test starts it as a process of its own, so nothing that a test does to
// a mount can wedge the daemon that serves it.
//
// A change is made on the host side and then a fence: a sentinel file whose event each
// client has to print before the next change. What a client in the guest said is
// compared with what the same client said on the host directory itself.
//
// The test binary starts itself again, with HERALDFS_E2E_ROLE set, where a client must be a
// process: in a mount namespace, in a chroot, or under another user.
//
// Client programs are installed by testdata/prepare.sh and never by a test.
package e2e
