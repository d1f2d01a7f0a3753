// Package agenttest tries heraldfs virtiofs and heraldfs agent together in a virtual machine, as programs, with a
// stock kernel and with Debian's inotifywait. It has tests only.
package agenttest
