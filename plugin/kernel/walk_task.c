// SPDX-License-Identifier: GPL-2.0-only
/* What one task has, as its links in procfs tell it. */
#include "look.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "syscalls.h"

/* --- what is of interest --- */

bool has_number(const uint64_t *numbers, size_t count, uint64_t number)
{
	size_t low = 0, high = count;

	while (low < high) {
		size_t middle = (low + high) / 2;

		if (numbers[middle] < number)
			low = middle + 1;
		else
			high = middle;
	}
	return low < count && numbers[low] == number;
}

/* The attached mounts of an id: there is one, but for the moment in which an id is reused. */
static const struct mount_row *find_mount(const struct walk *walk, uint32_t mnt_id)
{
	size_t low = 0, high = walk->nr_mounts;

	while (low < high) {
		size_t middle = (low + high) / 2;

		if (walk->mounts[middle].mnt_id < mnt_id)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == walk->nr_mounts || walk->mounts[low].mnt_id != mnt_id)
		return NULL;
	return &walk->mounts[low];
}

static bool is_attached(const struct walk *walk, uint32_t mnt_id, uint64_t dev)
{
	const struct mount_row *row = find_mount(walk, mnt_id);

	return row && (!dev || row->dev == dev || row->many_devices);
}

static bool is_internal(const struct walk *walk, uint64_t dev)
{
	return has_number(walk->internal, walk->nr_internal, dev);
}

/* --- taking note --- */

static void set_place(const struct look *look, struct seen *seen, int what, uint64_t number)
{
	seen->what = what;
	seen->number = number;
	seen->pid = look->pid;
	seen->tid = look->tid;
}

static struct seen *new_entry(struct look *look, int what, uint64_t number)
{
	struct arena *arena = look->arena;
	struct seen *seen;

	if (arena->count == arena->capacity) {
		arena->error = ENOMEM;
		return NULL;
	}
	seen = &arena->seen[arena->count++];
	*seen = (struct seen){ 0 };
	set_place(look, seen, what, number);
	return seen;
}

struct seen *look_note(struct look *look, int what, uint64_t number, const struct statx *stx)
{
	struct seen *seen = new_entry(look, what, number);

	if (!seen)
		return NULL;
	seen->dev = makedev(stx->stx_dev_major, stx->stx_dev_minor);
	seen->ino = stx->stx_mask & STATX_INO ? stx->stx_ino : 0;
	seen->mode = stx->stx_mode;
	seen->mnt_id = stx->stx_mnt_id;
	return seen;
}

void look_note_error(struct look *look, int what, uint64_t number, uint32_t mnt_id, int error)
{
	struct seen *seen = new_entry(look, what, number);

	if (seen) {
		seen->mnt_id = mnt_id;
		seen->error = error;
	}
}

static bool is_place(const struct seen *one, const struct seen *other)
{
	return one->pid == other->pid && one->tid == other->tid && one->what == other->what &&
	       one->number == other->number;
}

/* Say what is looked at, for it may hang; false when that was so before. */
static bool begin(struct look *look, int what, uint64_t number)
{
	struct arena *arena = look->arena;

	set_place(look, &arena->at, what, number);
	__atomic_add_fetch(&arena->beats, 1, __ATOMIC_RELEASE);
	for (unsigned int i = 0; i < arena->nr_skipped; i++) {
		if (is_place(&arena->skipped[i], &arena->at)) {
			look_note_error(look, what, number, 0, ETIMEDOUT);
			return false;
		}
	}
	return true;
}

/* --- one link --- */

int glance(int dir, const char *name, struct statx *stx)
{
	int ret, flags = AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT | (*name ? 0 : AT_EMPTY_PATH);

	do
		ret = statx(dir, name, flags, 0, stx);
	while (ret && errno == EINTR);
	return ret ? errno : 0;
}

int sys_glance(int dir, const char *path, struct file_facts *out)
{
	struct statx stx;
	int error = glance(dir, path, &stx);

	if (error)
		return -error;
	*out = facts_in(&stx);
	return 0;
}

static int open_in(int dir, const char *name, int flags)
{
	int fd;

	do
		fd = openat(dir, name, flags | O_CLOEXEC);
	while (fd < 0 && errno == EINTR);
	return fd < 0 ? -errno : fd;
}

/* The mount id in a file of fdinfo: 0 or an errno. */
static int mount_in_fdinfo(int dir, const char *name, uint32_t *mnt_id)
{
	char text[512], *found;
	ssize_t size;
	int fd = open_in(dir, name, O_RDONLY);

	if (fd < 0)
		return -fd;
	size = read(fd, text, sizeof(text) - 1);
	if (size < 0) {
		int error = errno;

		close(fd);
		return error;
	}
	close(fd);
	text[size] = '\0';
	found = strstr(text, "mnt_id:");
	if (!found)
		return EOPNOTSUPP;
	*mnt_id = strtoul(found + strlen("mnt_id:"), NULL, 10);
	return 0;
}

/*
 * The mount of a link that does not answer. Of an fd fdinfo tells it, which asks no filesystem; of
 * another link an O_PATH fd of the same file does, for a moment.
 */
static int mount_of_link(struct look *look, int dir, const char *name, int what, uint32_t *mnt_id)
{
	char path[64];
	int fd, error;

	if (what == 'f') {
		snprintf(path, sizeof(path), "fdinfo/%s", name);
		return mount_in_fdinfo(look->dir, path, mnt_id);
	}
	fd = open_in(dir, name, O_PATH);
	if (fd < 0)
		return -fd;
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	error = mount_in_fdinfo(AT_FDCWD, path, mnt_id);
	close(fd);
	return error;
}

/* An fd of /proc/PID/fd of a process that ended says ENOENT too, and is there. */
static void look_at_unanswering(struct look *look, int dir, const char *name, int what,
				uint64_t number, int error)
{
	uint32_t mnt_id = 0;
	int other = mount_of_link(look, dir, name, what, &mnt_id);

	if (ended(other) || (!other && is_attached(look->walk, mnt_id, 0)))
		return;
	look_note_error(look, what, number, mnt_id, error);
}

static void look_at_link(struct look *look, int dir, const char *name, int what, uint64_t number)
{
	struct statx stx;
	uint64_t dev;
	int error;

	if (!begin(look, what, number))
		return;
	error = glance(dir, name, &stx);
	if (error) {
		look_at_unanswering(look, dir, name, what, number, error);
		return;
	}
	dev = makedev(stx.stx_dev_major, stx.stx_dev_minor);
	if (look->walk->only && look->walk->only != dev)
		return;
	if (dev == look->walk->sockets && S_ISSOCK(stx.stx_mode))
		look_at_socket(look, dir, name, &stx);
	else if (!is_internal(look->walk, dev) && !is_attached(look->walk, stx.stx_mnt_id, dev))
		look_note(look, what, number, &stx);
}

/* --- all fds --- */

/* Call a function for each number in a directory of procfs; 0 or an errno. */
static int for_each_number(int dir, void (*work)(struct look *, int dir, const char *name),
			   struct look *look)
{
	char buf[16 << 10];
	long size;

	while ((size = syscall(SYS_getdents64, dir, buf, sizeof(buf))) > 0) {
		for (long at = 0; at < size;) {
			const struct dirent64 *entry = (const void *)(buf + at);

			at += entry->d_reclen;
			if (*entry->d_name != '.')
				work(look, dir, entry->d_name);
		}
	}
	return size < 0 ? errno : 0;
}

static void look_at_fd(struct look *look, int dir, const char *name)
{
	look_at_link(look, dir, name, 'f', strtoul(name, NULL, 10));
}

static void look_at_fds(struct look *look)
{
	int error, dir;

	if (!begin(look, 'd', 0))
		return;
	dir = open_in(look->dir, "fd", O_RDONLY | O_DIRECTORY);
	error = dir < 0 ? -dir : for_each_number(dir, look_at_fd, look);
	if (dir >= 0)
		close(dir);
	if (error && !ended(error))
		look_note_error(look, 'd', 0, 0, error);
}

/* --- mappings: of these procfs shows the device number of the superblock --- */

static void look_at_mapping(struct look *look, const struct uapi_procmap_query *found)
{
	uint64_t dev = makedev(found->dev_major, found->dev_minor);
	struct seen *seen;

	if (!dev || is_internal(look->walk, dev) ||
	    has_number(look->walk->devs, look->walk->nr_devs, dev))
		return;
	seen = new_entry(look, 'm', found->vma_start);
	if (seen) {
		seen->end = found->vma_end;
		seen->dev = dev;
		seen->ino = found->inode;
	}
}

/* Linux 6.11; 0 or an errno. */
static int query_mappings(struct look *look, int maps)
{
	struct uapi_procmap_query query = {
		.size = sizeof(query), .query_flags = 0x30 /* _COVERING_OR_NEXT_VMA |
							      _FILE_BACKED_VMA */
	};

	for (;;) {
		/* What it was told before is not to be asked for. */
		query.vma_name_size = query.build_id_size = 0;
		if (ioctl(maps, PROCMAP_QUERY_, &query)) {
			if (errno == EINTR)
				continue;
			return ended(errno) ? 0 : errno;
		}
		look_at_mapping(look, &query);
		query.query_addr = query.vma_end;
	}
}

static void parse_mapping(struct look *look, const char *line)
{
	struct uapi_procmap_query found = { 0 };
	unsigned long long start, end, ino;
	unsigned int major, minor;

	if (sscanf(line, "%llx-%llx %*s %*x %x:%x %llu", &start, &end, &major, &minor, &ino) == 5) {
		found.vma_start = start;
		found.vma_end = end;
		found.dev_major = major;
		found.dev_minor = minor;
		found.inode = ino;
		look_at_mapping(look, &found);
	}
}

/* Line by line: only a line's beginning matters, and a long one comes in pieces. */
static int read_mappings(struct look *look, int maps)
{
	char line[128], buf[16 << 10];
	size_t used = 0;
	ssize_t size;

	for (;;) {
		size = read(maps, buf, sizeof(buf));
		if (size < 0 && errno == EINTR)
			continue;
		if (size <= 0)
			return size < 0 && !ended(errno) ? errno : 0;
		for (ssize_t i = 0; i < size; i++) {
			if (buf[i] == '\n') {
				line[used] = '\0';
				parse_mapping(look, line);
				used = 0;
			} else if (used < sizeof(line) - 1) {
				line[used++] = buf[i];
			}
		}
	}
}

static void look_at_mappings(struct look *look)
{
	int error, maps;

	/* A process that hangs in a system call may have its memory locked. */
	if (look->walk->only || !begin(look, 'M', 0))
		return;
	maps = open_in(look->dir, "maps", O_RDONLY);
	if (maps < 0) {
		error = -maps;
	} else {
		error = query_mappings(look, maps);
		if (error == ENOTTY)
			error = read_mappings(look, maps);
		close(maps);
	}
	if (error && !ended(error))
		look_note_error(look, 'M', 0, 0, error);
}

/* --- the task, and threads that have something for themselves --- */

/* The kernel lets this process look at nothing of the task: once is enough to say so. */
static bool is_forbidden(struct look *look, size_t before)
{
	struct arena *arena = look->arena;
	int error;

	if (arena->count != before + 3)
		return false;
	error = arena->seen[before].error;
	for (size_t i = before; i < arena->count; i++)
		if (arena->seen[i].error != error)
			return false;
	if (error != EACCES && error != EPERM)
		return false;
	arena->count = before;
	look_note_error(look, 'p', 0, 0, error);
	return true;
}

/* False: it is not to be looked at. */
static bool look_at_all(struct look *look)
{
	size_t before = look->arena->count;

	look_at_link(look, look->dir, "cwd", 'c', 0);
	look_at_link(look, look->dir, "root", 'r', 0);
	look_at_link(look, look->dir, "exe", 'e', 0);
	if (is_forbidden(look, before))
		return false;
	look_at_fds(look);
	look_at_mappings(look);
	if (look->pid_fd >= 0)
		close(look->pid_fd);
	look->pid_fd = -1;
	return true;
}

/* False also where the kernel does not tell: then the thread is looked at. */
static bool shares_all(pid_t tid, pid_t other)
{
	return !syscall(SYS_kcmp, tid, other, KCMP_FILES, 0, 0) &&
	       !syscall(SYS_kcmp, tid, other, KCMP_FS, 0, 0);
}

static void look_at_thread(struct look *look, int dir, const char *name)
{
	pid_t tid = strtol(name, NULL, 10);
	int saved = look->dir;

	if (tid == look->pid || shares_all(tid, look->pid))
		return;
	look->tid = tid;
	look->dir = open_in(dir, name, O_PATH | O_DIRECTORY);
	if (look->dir >= 0) {
		look_at_all(look);
		close(look->dir);
	} else if (!ended(-look->dir)) {
		look_note_error(look, 'p', 0, 0, -look->dir);
	}
	look->dir = saved;
	look->tid = look->pid;
}

static void look_at_threads(struct look *look)
{
	struct statx stx;
	int error, dir;

	/* The link count of the directory tells how many there are (proc_task_getattr). */
	error = glance(look->dir, "task", &stx);
	if (!error && stx.stx_nlink <= 3)
		return;
	if (!error) {
		dir = open_in(look->dir, "task", O_RDONLY | O_DIRECTORY);
		error = dir < 0 ? -dir : for_each_number(dir, look_at_thread, look);
		if (dir >= 0)
			close(dir);
	}
	if (error && !ended(error))
		look_note_error(look, 't', 0, 0, error);
}

void look_at_task(struct look *look)
{
	char path[32];

	look->tid = look->pid;
	look->pid_fd = -1;
	look->net = 0;
	look->arena->looks++;
	if (!begin(look, 'p', 0))
		return;
	snprintf(path, sizeof(path), "/proc/%d", look->pid);
	/* What is asked below it from here on is asked of this very process. */
	look->dir = open_in(AT_FDCWD, path, O_PATH | O_DIRECTORY);
	if (look->dir < 0) {
		if (!ended(-look->dir))
			look_note_error(look, 'p', 0, 0, -look->dir);
		return;
	}
	if (look_at_all(look))
		look_at_threads(look);
	close(look->dir);
}
