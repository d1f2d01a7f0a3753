// Package vmtest boots a stock Debian kernel in QEMU and runs commands in it, for tests
// of virtiofs and of everything that lives in a real guest.
//
// # Concepts
//
// Nothing is installed for the guest: kernel and busybox come out of Debian
// packages that are downloaded and unpacked into a cache directory (Assets), and the initramfs is written
// here. Its init is guestd, a static helper of ours (subdirectory guestd) that mounts the pseudo
// file systems and then carries out requests that come over a virtio-serial port,
// one JSON object per line (subdirectory wire). QEMU is the machine's own.
//
// With Options.Root the guest has no initramfs: its root file system is a share, and its init is Debian's systemd (SystemdRoot),
// which runs guestd as a service.
//
// Start returns when guestd has answered. QEMU connects to sockets that we
// listen on, so there is nothing to poll. A boot that fails is tried once more: under TCG about
// one in a hundred does. Every wait is bounded, a guest that panics is noticed by its console, and the
// machine is killed at the end of the test.
//
// # Accelerators
//
// Where /dev/kvm opens, the first guest of a process is preceded by a trial: if the kernel boots under KVM within four
// seconds, guests use it, else TCG. The environment variable HERALDFS_ACCEL (kvm or tcg) names one and spares the trial.
//
// # Locks
//
// VM.mu guards the pending requests and the watches; nothing is called with it held.
package vmtest
