// Package sandbox confines this process to one directory, DIR, of the host.
//
// # Modes
//
//	namespace   the process is started again in mount, pid and network namespaces of its own. Its root
//	            is an empty read-only tmpfs in which there are DIR, at the path that it has outside,
//	            /proc/self/fd and /proc/self/mountinfo. Without privileges the namespaces
//	            come with a user namespace in which only the caller's ids are mapped.
//	chroot      DIR becomes the root, and /proc/self/fd the working directory.
//	landlock    no file outside of DIR can be opened, made or removed.
//	none        nothing.
//
// In every mode but none the process then gives up all capabilities but those that a file server
// needs, can gain no others (no_new_privs), and, where the kernel has it, puts itself under Landlock.
//
// # File handles
//
// Whoever may open files by handle (CAP_DAC_READ_SEARCH) reaches every file of a file system that he has a
// directory of, past namespaces and roots. A guest cannot name a handle; this is about a process that has
// been made to execute what the guest wants. Landlock stops it in the modes chroot and landlock. In namespace mode it does
// not on all kernels: DIR is a bind mount there, and Linux 6.18 takes a file outside of a bind mount's root for one
// below it. Options.NoHandles gives the capability up.
//
// # Order
//
//	Supervise         the parent: starts the child, forwards signals, waits for it
//	Enter             the child: what has a path or a network outside is opened before
//	Seal              what needs CAP_SYS_ADMIN (fanotify groups, marks on file systems) is opened before
//
// The parent stays outside: it removes what the child cannot reach any more. In namespace mode there
// has to be one. Neither process outlives the other: the child is told of the
// parent's death by a pipe, and is killed by the kernel if it is too young to listen.
//
// # Threads
//
// Capabilities, no_new_privs, Landlock domains and network namespaces are attributes of threads, and Go
// has several from the beginning. They are changed on all at once with syscall.AllThreadsSyscall, which does not work in
// programs with C code in them: there only none is possible (ErrCgo). Roots and mount namespaces
// are shared by the threads of a process.
//
// The thread of a request changes its fsuid, which makes the kernel forget PR_SET_PDEATHSIG: hence the pipe.
package sandbox
