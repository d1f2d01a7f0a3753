/*
 * The least that a mount of a tree can cost: a daemon of one thread that has read the tree's names and attributes
 * before, answers from memory, and lets the kernel keep all for an hour. Content it reads from the host's files, or writes to them.
 * It hears of no change, checks nothing, and serves those only who read, or who write a file. What a job takes here is the kernel's own
 * work, the requests' way, and the copies of the data.
 *
 * usage: still SOURCE MOUNTPOINT
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define KEEP 3600
#define PAYLOAD (1 << 20)

struct node {
	char *path;
	const char *name;
	struct fuse_attr attr;
	size_t first, count; /* a directory's entries are neighbours */
};

/* A node's id is its place, and the root is in place 1. */
static struct node *nodes;
static __u32 *hashes;
static size_t used = 2, room;

static char in[PAYLOAD + 4096];
static struct fuse_out_header head;
static char body[PAYLOAD + 4096];
static int fuse;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static __u32 hash(const char *s)
{
	__u32 h = 2166136261u;

	while (*s)
		h = (h ^ (unsigned char)*s++) * 16777619u;
	return h;
}

static void learn(size_t id, char *path)
{
	struct node *n = &nodes[id];
	struct fuse_attr *a = &n->attr;
	struct stat st;

	if (lstat(path, &st))
		die(path);
	n->path = path;
	n->name = strrchr(path, '/') + 1;
	hashes[id] = hash(n->name);
	a->ino = st.st_ino;
	a->size = st.st_size;
	a->blocks = st.st_blocks;
	a->atime = st.st_atim.tv_sec;
	a->atimensec = st.st_atim.tv_nsec;
	a->mtime = st.st_mtim.tv_sec;
	a->mtimensec = st.st_mtim.tv_nsec;
	a->ctime = st.st_ctim.tv_sec;
	a->ctimensec = st.st_ctim.tv_nsec;
	a->mode = st.st_mode;
	a->nlink = st.st_nlink;
	a->uid = st.st_uid;
	a->gid = st.st_gid;
	a->blksize = st.st_blksize;
}

/* add makes room for the node of path, and learns it. */
static size_t add(const char *dir, const char *name)
{
	char *path;

	if (used == room) {
		room *= 2;
		nodes = realloc(nodes, room * sizeof(*nodes));
		hashes = realloc(hashes, room * sizeof(*hashes));
		if (!nodes || !hashes)
			die("realloc");
		memset(nodes + used, 0, (room - used) * sizeof(*nodes));
	}
	if (asprintf(&path, "%s/%s", dir, name) < 0)
		die("asprintf");
	learn(used, path);
	return used++;
}

static void list(size_t id)
{
	struct dirent *d;
	DIR *dir = opendir(nodes[id].path);
	size_t first = used;

	if (!dir)
		die(nodes[id].path);
	while ((d = readdir(dir))) {
		if (strcmp(d->d_name, ".") && strcmp(d->d_name, ".."))
			add(nodes[id].path, d->d_name);
	}
	closedir(dir);
	nodes[id].first = first;
	nodes[id].count = used - first;
}

static void answer(__u64 unique, int error, size_t size)
{
	struct iovec v[2] = { { &head, sizeof(head) }, { body, size } };

	head.len = sizeof(head) + size;
	head.error = error;
	head.unique = unique;
	if (writev(fuse, v, size ? 2 : 1) < 0 && errno != ENOENT)
		die("write");
}

static void entry(struct fuse_entry_out *e, size_t id)
{
	memset(e, 0, sizeof(*e));
	e->nodeid = id;
	e->entry_valid = e->attr_valid = KEEP;
	e->attr = nodes[id].attr;
}

static size_t lookup(const struct node *dir, const char *name)
{
	__u32 h = hash(name);

	for (size_t i = dir->first; i < dir->first + dir->count; i++)
		if (hashes[i] == h && !strcmp(nodes[i].name, name))
			return i;
	return 0;
}

/* readdir fills body; an entry's offset is how many are before the next one. */
static size_t readdir_into(const struct node *dir, struct fuse_read_in *r, int plus)
{
	size_t size = 0;

	for (__u64 at = r->offset; at < dir->count + 2; at++) {
		const char *name = at == 0 ? "." : at == 1 ? ".." : nodes[dir->first + at - 2].name;
		size_t len = strlen(name);
		size_t before = plus ? sizeof(struct fuse_entry_out) : 0;
		size_t all = FUSE_DIRENT_ALIGN(before + FUSE_NAME_OFFSET + len);
		struct fuse_dirent *d = (void *)(body + size + before);
		const struct fuse_attr *a = at < 2 ? &dir->attr : &nodes[dir->first + at - 2].attr;

		if (size + all > r->size)
			break;
		memset(body + size, 0, all);
		if (plus && at >= 2)
			entry((void *)(body + size), dir->first + at - 2);
		d->ino = a->ino;
		d->off = at + 1;
		d->namelen = len;
		d->type = a->mode >> 12 & 15;
		memcpy(d->name, name, len);
		size += all;
	}
	return size;
}

/* writer does what who writes a file asks for, and reports whether it was that. A file that it makes is in no listing. */
static int writer(struct fuse_in_header *h, struct node *n)
{
	void *arg = h + 1;
	size_t id;
	char *path;
	int failed;

	switch (h->opcode) {
	case FUSE_CREATE: {
		struct fuse_create_in *c = arg;
		struct fuse_entry_out *e = (void *)body;
		struct fuse_open_out *o = (void *)(e + 1);
		int fd;

		if (asprintf(&path, "%s/%s", n->path, (char *)(c + 1)) < 0)
			die("asprintf");
		fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, c->mode);
		free(path);
		if (fd < 0)
			break;
		id = add(n->path, (char *)(c + 1)); /* n may be elsewhere now */
		entry(e, id);
		memset(o, 0, sizeof(*o));
		o->fh = fd;
		o->open_flags = FOPEN_KEEP_CACHE | FOPEN_NOFLUSH;
		answer(h->unique, 0, sizeof(*e) + sizeof(*o));
		return 1;
	}
	case FUSE_WRITE: {
		struct fuse_write_in *w = arg;
		struct fuse_write_out *o = (void *)body;
		ssize_t got = pwrite(w->fh, w + 1, w->size, w->offset);

		if (got < 0)
			break;
		if (w->offset + got > n->attr.size)
			n->attr.size = w->offset + got;
		memset(o, 0, sizeof(*o));
		o->size = got;
		answer(h->unique, 0, sizeof(*o));
		return 1;
	}
	case FUSE_SETATTR: {
		struct fuse_setattr_in *s = arg;
		struct fuse_attr_out *o = (void *)body;

		if (s->valid & FATTR_SIZE) {
			if (truncate(n->path, s->size))
				break;
			n->attr.size = s->size;
		}
		memset(o, 0, sizeof(*o));
		o->attr_valid = KEEP;
		o->attr = n->attr;
		answer(h->unique, 0, sizeof(*o));
		return 1;
	}
	case FUSE_UNLINK:
		if (asprintf(&path, "%s/%s", n->path, (char *)arg) < 0)
			die("asprintf");
		failed = unlink(path);
		free(path);
		if (failed)
			break;
		answer(h->unique, 0, 0);
		return 1;
	default:
		return 0;
	}
	answer(h->unique, -errno, 0);
	return 1;
}

static void request(struct fuse_in_header *h)
{
	void *arg = h + 1;
	struct node *n = h->nodeid < used ? &nodes[h->nodeid] : NULL;
	ssize_t got;
	size_t id;

	switch (h->opcode) {
	case FUSE_INIT: {
		struct fuse_init_in *asked = arg;
		struct fuse_init_out *o = (void *)body;

		memset(o, 0, sizeof(*o));
		o->major = FUSE_KERNEL_VERSION;
		o->minor = 31;
		o->max_readahead = PAYLOAD;
		o->max_write = PAYLOAD;
		o->max_pages = PAYLOAD / 4096;
		o->max_background = 64;
		o->congestion_threshold = 48;
		o->flags = asked->flags & (FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO |
					   FUSE_PARALLEL_DIROPS | FUSE_NO_OPENDIR_SUPPORT | FUSE_CACHE_SYMLINKS | FUSE_MAX_PAGES);
		answer(h->unique, 0, sizeof(*o));
		return;
	}
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		return;
	case FUSE_RELEASE:
		close(((struct fuse_release_in *)arg)->fh);
		answer(h->unique, 0, 0);
		return;
	}
	if (!n) {
		answer(h->unique, -ESTALE, 0);
		return;
	}
	switch (h->opcode) {
	case FUSE_LOOKUP:
		id = lookup(n, arg);
		memset(body, 0, sizeof(struct fuse_entry_out));
		if (id)
			entry((void *)body, id);
		else
			((struct fuse_entry_out *)body)->entry_valid = KEEP;
		answer(h->unique, 0, sizeof(struct fuse_entry_out));
		return;
	case FUSE_GETATTR: {
		struct fuse_attr_out *o = (void *)body;

		memset(o, 0, sizeof(*o));
		o->attr_valid = KEEP;
		o->attr = n->attr;
		answer(h->unique, 0, sizeof(*o));
		return;
	}
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
		answer(h->unique, 0, readdir_into(n, arg, h->opcode == FUSE_READDIRPLUS));
		return;
	case FUSE_READLINK:
		got = readlink(n->path, body, PAYLOAD);
		answer(h->unique, got < 0 ? -errno : 0, got < 0 ? 0 : got);
		return;
	case FUSE_OPEN: {
		struct fuse_open_out *o = (void *)body;
		int fd = open(n->path, (((struct fuse_open_in *)arg)->flags & O_ACCMODE) | O_CLOEXEC);

		memset(o, 0, sizeof(*o));
		o->fh = fd;
		o->open_flags = FOPEN_KEEP_CACHE | FOPEN_NOFLUSH;
		answer(h->unique, fd < 0 ? -errno : 0, fd < 0 ? 0 : sizeof(*o));
		return;
	}
	case FUSE_READ: {
		struct fuse_read_in *r = arg;

		got = pread(r->fh, body, r->size, r->offset);
		answer(h->unique, got < 0 ? -errno : 0, got < 0 ? 0 : got);
		return;
	}
	}
	if (!writer(h, n))
		answer(h->unique, -ENOSYS, 0);
}

int main(int argc, char **argv)
{
	char data[128];

	if (argc != 3) {
		fprintf(stderr, "usage: still SOURCE MOUNTPOINT\n");
		return 2;
	}
	room = 1024;
	nodes = calloc(room, sizeof(*nodes));
	hashes = calloc(room, sizeof(*hashes));
	if (!nodes || !hashes)
		die("calloc");
	learn(1, argv[1]);
	for (size_t id = 1; id < used; id++)
		if (S_ISDIR(nodes[id].attr.mode))
			list(id);
	fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (fuse < 0)
		die("/dev/fuse");
	snprintf(data, sizeof(data), "fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other,max_read=%d", fuse, PAYLOAD);
	if (mount("still", argv[2], "fuse.still", MS_NOSUID | MS_NODEV, data))
		die(argv[2]);
	puts("ready");
	fflush(stdout);
	for (;;) {
		ssize_t got = read(fuse, in, sizeof(in));

		if (got < 0 && errno == ENODEV)
			return 0;
		if (got < 0 && errno != EINTR && errno != ENOENT)
			die("read");
		if (got > 0)
			request((void *)in);
	}
}
