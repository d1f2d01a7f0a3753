/*
 * The least that a FUSE daemon can cost: one thread that reads a request from
 * /dev/fuse and writes an answer made beforehand. It serves an empty directory. The bench
 * takes the time of a forced statx there for the round trip of a request.
 *
 * usage: floor MOUNTPOINT
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

static char in[1 << 20 | 4096];
static struct {
	struct fuse_out_header head;
	union {
		struct fuse_init_out init;
		struct fuse_attr_out attr;
	};
} out;

static int answer(int fd, __u64 unique, int error, size_t body)
{
	out.head.len = sizeof(out.head) + body;
	out.head.error = error;
	out.head.unique = unique;
	return write(fd, &out, out.head.len) < 0 && errno != ENOENT;
}

static int serve(int fd)
{
	for (;;) {
		ssize_t n = read(fd, in, sizeof(in));
		struct fuse_in_header *h = (void *)in;

		if (n < 0) {
			if (errno == EINTR || errno == ENOENT)
				continue;
			return errno == ENODEV ? 0 : 1;
		}
		memset(&out, 0, sizeof(out));
		switch (h->opcode) {
		case FUSE_INIT:
			out.init.major = FUSE_KERNEL_VERSION;
			out.init.minor = 31;
			out.init.max_write = 1 << 20;
			if (answer(fd, h->unique, 0, sizeof(out.init)))
				return 1;
			break;
		case FUSE_GETATTR:
			out.attr.attr.ino = 1;
			out.attr.attr.mode = S_IFDIR | 0755;
			out.attr.attr.nlink = 2;
			if (answer(fd, h->unique, 0, sizeof(out.attr)))
				return 1;
			break;
		case FUSE_FORGET:
		case FUSE_BATCH_FORGET:
		case FUSE_INTERRUPT:
			break;
		default:
			if (answer(fd, h->unique, -ENOSYS, 0))
				return 1;
		}
	}
}

int main(int argc, char **argv)
{
	char data[100];
	int fd;

	if (argc != 2) {
		fprintf(stderr, "usage: floor MOUNTPOINT\n");
		return 2;
	}
	fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (fd < 0) {
		perror("/dev/fuse");
		return 1;
	}
	snprintf(data, sizeof(data), "fd=%d,rootmode=40000,user_id=0,group_id=0", fd);
	if (mount("floor", argv[1], "fuse.floor", MS_NOSUID | MS_NODEV, data)) {
		perror(argv[1]);
		return 1;
	}
	puts("ready");
	fflush(stdout);
	return serve(fd);
}
