// Package virtiofs serves a fuse.RawFileSystem to a virtual machine: it is the
// vhost-user back-end of a virtio-fs device (virtio 1.2, device type 26, split
// virtqueues; the vhost-user protocol as documented with QEMU).
//
// # Concepts
//
// The front-end is the virtual machine monitor (VMM); it connects to our socket and hands
// over the guest's memory as file descriptors, and two event descriptors for each
// virtqueue: kick (the guest made a request available) and call (we have used one).
// Queue 0 is hiprio (FORGET), the others carry requests. A descriptor chain is one
// FUSE request: device-readable parts hold the request, device-writable parts
// take the reply.
//
// There are three lives, each inside the one before:
//
//	connection  a VMM is connected               accept ... disconnect
//	ring        a driver runs the queues         SET_VRING_KICK ... GET_VRING_BASE
//	session     a FUSE mount, one file system    INIT ... DESTROY, next INIT, disconnect
//
// Pausing a machine stops the rings and keeps the session. A guest that is reset sends
// no DESTROY; the INIT of its next boot ends what the last one left. A request
// outside of a session, as from a guest that was mounted when the back-end was
// restarted, is answered ENOTCONN: that guest has to mount again.
//
// # Trust
//
// The guest is hostile. It can write to its memory at any time, so each index,
// address and length is read once, checked, and used from the copy; a request is copied
// before it is parsed, and a reply is built in our memory, except for the bulk data of
// READ and WRITE, which only system calls or the file system touch. Chains are bounded in
// parts and bytes, so loops end; a head that is made available twice is
// refused. Such an error stops all queues of the device until the front-end starts them
// again (as it does when the guest is reset), and is reported by Options.OnError.
//
// The front-end is less hostile, since it runs on the host, but can be confused: a message that
// makes no sense ends the connection. Memory that it truncates behind our back raises
// SIGBUS; that is turned into an error of the device.
//
// # Concurrency
//
// Each started queue has one goroutine with the popping role. It carries out quick
// requests itself; what is known to block, and what arrives together with other requests,
// goes to a goroutine of its own. A watchdog passes the role on when the one that has it
// is stuck in a handler (server/turns).
// MaxWorkers bounds the goroutines; when all are busy requests wait in the queue. SETLKW is apart, since what
// ends its waiting is a later request: as many again may wait, and one more is answered ENOLCK.
//
// # Locks
//
//	device.mountMu      INIT and DESTROY, and the end of the session
//	  session.mu        which requests are in a handler
//	queue.mu            ring state, used ring, busy heads
//
// The device's other state belongs to the goroutine that reads the front-end's messages. Of these locks only
// mountMu is held while a handler runs, that of INIT. GET_VRING_BASE, and the end of a session, wait for
// the handlers after cancelling them, so a handler must end when its cancel channel is closed.
package virtiofs
