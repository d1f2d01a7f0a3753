// Package testenv is the ground that tests stand on: it says what a test needs,
// makes file systems of every kind for one test, and finds what a test package
// left behind.
//
// # Needs
//
// A test says with [Need] what it cannot do without. On a machine that lacks
// it the test is skipped with the reason; where CI=true is set it fails, so that a
// capability that CI has been given is never lost in silence.
//
// # File systems
//
// [Ext4], [XFS], [Btrfs], [BtrfsSubvolume], [Tmpfs] and [Overlay] return a
// directory on which a fresh one is mounted; [FileSystems] lists them all. Images are sparse
// files in the test's temporary directory on loop devices with LO_FLAGS_AUTOCLEAR: the
// kernel gives the device back with the last unmount, whatever becomes of the test.
// Cleanup runs in reverse order, so whoever opens a descriptor in there closes it in
// a cleanup registered after the mount.
//
// # Leaks
//
// [LeakMain] is a TestMain. It gives the package a temporary directory of its
// own, which is how a mount or a loop device is known to be ours while other test
// binaries run next to us.
package testenv
