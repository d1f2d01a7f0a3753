// Command bench measures what docs/benchmarks.md promises and prints a table:
//
//	go run ./internal/bench [-markdown FILE] [-only REGEXP]
//
// It builds heraldfs, makes its trees on a tmpfs of its own, and compares each
// figure with the native tree and with what people use instead: go-fuse's
// loopback with its defaults, bindfs if it is installed, and inotifywait.
// It needs root, /dev/fuse and about 2 GiB of memory.
//
// # Measuring
//
// The figures are medians. What is compared is measured in turn, round by round, so that
// a disturbance of the machine meets everybody. Who comes first changes with
// each round. The load average before and after the run is part of the output:
// figures from a busy machine are not worth comparing.
//
// # Cleaning up
//
// Whatever is started or mounted is put on the bench's stack of undo
// functions, which is unwound at the end of each section and on SIGINT. The
// kernel's switch for FUSE over io_uring, which is on during the run, is there too. The
// processes have a group of their own, so that a SIGINT from the terminal reaches the bench
// alone and it can take everything down in order.
package main
