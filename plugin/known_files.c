// SPDX-License-Identifier: GPL-2.0-only
/*
 * The fast path of a restore: an index over the File records, and the opening of those
 * that are plain. A restore of ten thousand files has 6 microseconds for each, which
 * Python does not fit in. It decides nothing: whatever is not exactly as recorded is
 * left to criu_detached/restore/files.py, which does the same steps and tells errors apart.
 */
#define _GNU_SOURCE
#include "known_files.h"

#include "beneath.h"

#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/*
 * --- shared memory of the tasks, mapped before CRIU forks them ---
 *
 * Whoever dies with a lock leaves the others waiting. CRIU then ends them all (sigchld_handler,
 * criu/cr-restore.c). A robust lock would do nothing here: it is libc that makes it known to
 * the kernel, and CRIU's tasks are made by clone(2) without it.
 */

static struct shared {
	pthread_mutex_t lock;
	int value;
} *shared;

int shared_alloc(unsigned int count)
{
	pthread_mutexattr_t attr;

	shared = mmap(NULL, (count + 1) * sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		return -1;
	pthread_mutexattr_init(&attr);
	pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	for (unsigned int i = 0; i < count; i++) {
		pthread_mutex_init(&shared[i].lock, &attr);
		shared[i].value = -1;
	}
	return 0;
}

void shared_lock(unsigned int index)
{
	pthread_mutex_lock(&shared[index].lock);
}

void shared_unlock(unsigned int index)
{
	pthread_mutex_unlock(&shared[index].lock);
}

int shared_get(unsigned int index)
{
	return __atomic_load_n(&shared[index].value, __ATOMIC_ACQUIRE);
}

void shared_set(unsigned int index, int value)
{
	__atomic_store_n(&shared[index].value, value, __ATOMIC_RELEASE);
}

/* --- mounts --- */

struct known_mount {
	uint32_t mnt_id;
	char *key;
	int shared;
	bool keeps_inodes;
};

static struct known_mount *mounts;
static size_t nr_mounts;

int known_mount_add(uint32_t mnt_id, const char *key, int index, int keeps_inodes)
{
	struct known_mount *grown = realloc(mounts, (nr_mounts + 1) * sizeof(*mounts));

	if (!grown)
		return -1;
	mounts = grown;
	mounts[nr_mounts].mnt_id = mnt_id;
	mounts[nr_mounts].key = key ? strdup(key) : NULL;
	mounts[nr_mounts].shared = index;
	mounts[nr_mounts].keeps_inodes = keeps_inodes;
	if (key && !mounts[nr_mounts].key)
		return -1;
	nr_mounts++;
	return 0;
}

static const struct known_mount *find_mount(uint32_t mnt_id)
{
	for (size_t i = 0; i < nr_mounts; i++)
		if (mounts[i].mnt_id == mnt_id)
			return &mounts[i];
	return NULL;
}

/* --- the index over the record file --- */

struct known_file {
	const struct known_mount *mount;
	uint64_t ino;
	uint64_t rdev;
	uint64_t size;
	uint32_t mode;
	uint32_t path_size;
	const uint8_t *path; /* in the record file, without an end mark */
};

static struct known_file *files;
static size_t nr_files;

/* Bytes that are left to read. Every step is checked against the end. */
struct reader {
	const uint8_t *at, *end;
};

/* criu_detached.proto: Entry.file = 3, and the fields of File */
enum { ENTRY_FILE = 3 };
enum {
	FILE_MNT_ID = 1,
	FILE_INO,
	FILE_DEV,
	FILE_MODE,
	FILE_PATH,
	FILE_RDEV,
	FILE_HANDLE,
	FILE_SIZE
};
enum { WIRE_VARINT = 0, WIRE_LENGTH = 2 };

static bool read_varint(struct reader *r, uint64_t *value)
{
	*value = 0;
	for (unsigned int shift = 0; shift < 64 && r->at < r->end; shift += 7) {
		uint8_t byte = *r->at++;

		if (shift == 63 && byte > 1)
			return false;
		*value |= (uint64_t)(byte & 0x7f) << shift;
		if (byte < 0x80)
			return true;
	}
	return false;
}

static bool read_delimited(struct reader *r, struct reader *inside)
{
	uint64_t size;

	if (!read_varint(r, &size) || size > (uint64_t)(r->end - r->at))
		return false;
	inside->at = r->at;
	inside->end = r->at + size;
	r->at += size;
	return true;
}

/* "." for the mount's root, else names that are neither empty nor "." nor "..". */
static bool stays_beneath(const uint8_t *path, size_t size)
{
	const uint8_t *name = path, *end = path + size;

	if (size == 0 || size >= PATH_MAX || memchr(path, '\0', size))
		return false;
	if (size == 1 && *path == '.')
		return true;
	while (name <= end) {
		const uint8_t *slash = memchr(name, '/', end - name);
		size_t len = (slash ? slash : end) - name;

		if (len == 0 || (len == 1 && name[0] == '.') ||
		    (len == 2 && name[0] == '.' && name[1] == '.'))
			return false;
		if (!slash)
			return true;
		name = slash + 1;
	}
	return false;
}

static bool read_file(struct reader r, struct known_file *file)
{
	uint64_t numbers[FILE_SIZE + 1] = { 0 };
	struct reader path = { 0 };
	unsigned int seen = 0;

	while (r.at < r.end) {
		struct reader inside;
		uint64_t tag, field;

		if (!read_varint(&r, &tag))
			return false;
		field = tag >> 3;
		if (field < FILE_MNT_ID || field > FILE_SIZE || seen & 1u << field)
			return false;
		seen |= 1u << field;
		if (field == FILE_PATH || field == FILE_HANDLE) {
			if ((tag & 7) != WIRE_LENGTH || !read_delimited(&r, &inside))
				return false;
			if (field == FILE_PATH)
				path = inside;
		} else if ((tag & 7) != WIRE_VARINT || !read_varint(&r, &numbers[field])) {
			return false;
		}
	}
	if (numbers[FILE_MNT_ID] > UINT32_MAX || numbers[FILE_MODE] > UINT32_MAX)
		return false;
	*file = (struct known_file){
		.mount = find_mount(numbers[FILE_MNT_ID]),
		.ino = numbers[FILE_INO],
		.rdev = numbers[FILE_RDEV],
		.size = numbers[FILE_SIZE],
		.mode = numbers[FILE_MODE],
		.path = path.at,
		.path_size = path.end - path.at,
	};
	return file->mount && path.at && stays_beneath(path.at, file->path_size);
}

static int compare_files(const void *one, const void *other)
{
	const struct known_file *a = one, *b = other;

	if (a->mount->mnt_id != b->mount->mnt_id)
		return a->mount->mnt_id < b->mount->mnt_id ? -1 : 1;
	return a->ino < b->ino ? -1 : a->ino > b->ino;
}

static bool add_file(struct reader r)
{
	struct known_file *grown;

	if ((nr_files & (nr_files - 1)) == 0) { /* a power of two: full */
		grown = realloc(files, (nr_files ? 2 * nr_files : 1) * sizeof(*files));
		if (!grown)
			return false;
		files = grown;
	}
	return read_file(r, &files[nr_files++]);
}

static bool read_entry(struct reader entry)
{
	struct reader inside;
	uint64_t tag;

	if (!read_varint(&entry, &tag))
		return false;
	if (tag != (ENTRY_FILE << 3 | WIRE_LENGTH))
		return true; /* Python reads the others */
	return read_delimited(&entry, &inside) && entry.at == entry.end && add_file(inside);
}

static bool read_entries(struct reader r)
{
	while (r.at < r.end) {
		uint32_t length;

		if (r.end - r.at < 4)
			return false;
		length = r.at[0] | r.at[1] << 8 | r.at[2] << 16 | (uint32_t)r.at[3] << 24;
		r.at += 4;
		if (length > (size_t)(r.end - r.at) ||
		    !read_entry((struct reader){ r.at, r.at + length }))
			return false;
		r.at += length;
	}
	return true;
}

static bool files_differ(void)
{
	if (nr_files)
		qsort(files, nr_files, sizeof(*files), compare_files);
	for (size_t i = 1; i < nr_files; i++)
		if (!compare_files(&files[i - 1], &files[i]))
			return false;
	return true;
}

int known_files_load(const uint8_t *data, size_t size)
{
	nr_files = 0;
	/* The magic numbers come first. */
	if (size >= 8 && read_entries((struct reader){ data + 8, data + size }) && files_differ())
		return (int)nr_files;
	nr_files = 0; /* the last of them may be half read */
	return -1;
}

/* --- opening, in a task --- */

/* "ile[<mnt_id hex>:<inode hex>]" */
static const struct known_file *find_file(const char *name)
{
	struct known_mount mount = { 0 };
	struct known_file wanted = { .mount = &mount };
	unsigned long long mnt_id;
	char *end;

	mnt_id = strtoull(name + strlen("ile["), &end, 16);
	if (*end != ':' || mnt_id > UINT32_MAX)
		return NULL;
	mount.mnt_id = mnt_id;
	wanted.ino = strtoull(end + 1, &end, 16);
	if (strcmp(end, "]") || !nr_files)
		return NULL;
	return bsearch(&wanted, files, nr_files, sizeof(*files), compare_files);
}

static int tree_fd(const struct known_mount *mount, const struct criu_host *host)
{
	int id;

	if (mount->key)
		return host->inherit_fd_get(mount->key);
	id = shared_get(mount->shared);
	return id < 0 ? -1 : host->fdstore_get(id >> 1);
}

/*
 * Fetching the tree fd costs more than opening a file, so where there are many files one
 * tree fd is kept from file to file until known_files_settle; and where they share a
 * directory, its fd too, for the way there takes as long as the rest. They must be in
 * nobody's way: their numbers are above those that the task will have and above CRIU's
 * service fds, which end at a multiple of 128 (choose_service_fd_base, criu/servicefd.c).
 */
#define MANY_FILES 64

static struct {
	const struct known_mount *mount; /* NULL: nothing is kept */
	pid_t pid;			 /* a forked task does not have it */
	int tree;
	uint32_t id;		 /* the mount's, to know the fds again */
	const uint8_t *dir_path; /* in the record file: the directory of the last file */
	size_t dir_size;
	int dir; /* its fd; -1 before a second file is in it */
} kept;

static bool may_keep;

void known_files_may_keep(bool allowed)
{
	may_keep = allowed && nr_files >= MANY_FILES;
}

/* 0 when the fd is not open. */
static uint32_t mount_id_of(int fd)
{
	struct file_facts facts;

	return facts_of(fd, &facts) ? 0 : facts.mnt_id;
}

static void close_kept(int fd)
{
	if (fd >= 0 && mount_id_of(fd) == kept.id)
		close(fd);
}

void known_files_settle(void)
{
	if (kept.mount && kept.pid == getpid()) {
		close_kept(kept.tree);
		close_kept(kept.dir);
	}
	kept.mount = NULL;
}

/* The fd where it is in nobody's way. */
static int out_of_the_way(int fd, const struct criu_host *host)
{
	int high = fcntl(fd, F_DUPFD_CLOEXEC, (host->image_dir() | 127) + 1);

	close(fd);
	return high;
}

static bool keep_tree(const struct known_mount *mount, const struct criu_host *host)
{
	int tree;

	if (kept.mount == mount && kept.pid == getpid())
		return true;
	known_files_settle();
	tree = tree_fd(mount, host);
	if (tree >= 0)
		tree = out_of_the_way(tree, host);
	if (tree < 0)
		return false;
	kept.mount = mount;
	kept.pid = getpid();
	kept.tree = tree;
	kept.id = mount_id_of(tree);
	kept.dir_path = NULL;
	kept.dir = -1;
	return true;
}

/* The fd of the directory that a path ends in after so many bytes; -1: go by the whole path. */
static int kept_dir(const uint8_t *path, size_t size, const struct criu_host *host)
{
	char text[PATH_MAX];

	if (!kept.dir_path || size != kept.dir_size || memcmp(path, kept.dir_path, size)) {
		close_kept(kept.dir);
		kept.dir_path = path;
		kept.dir_size = size;
		kept.dir = -1;
	} else if (kept.dir < 0) {
		memcpy(text, path, size);
		text[size] = '\0';
		kept.dir = open_beneath(kept.tree, text, O_PATH | O_DIRECTORY);
		if (kept.dir >= 0)
			kept.dir = out_of_the_way(kept.dir, host);
	}
	return kept.dir;
}

/* For a mount that a task realised, it said so in the lowest bit (known_files.h). */
static bool keeps_inodes(const struct known_mount *mount)
{
	return mount->key ? mount->keeps_inodes : shared_get(mount->shared) & 1;
}

static bool as_recorded(const struct known_file *file, const struct file_facts *found)
{
	return found->mode == file->mode && (!S_ISREG(file->mode) || found->size == file->size) &&
	       found->rdev == file->rdev && (!keeps_inodes(file->mount) || found->ino == file->ino);
}

/*
 * Look first, for opening a device or a FIFO that someone put in the file's place may
 * have an effect; then see that what was looked at is what was opened.
 */
static int open_in(int dir, const char *name, const struct known_file *file, int flags,
		   uint32_t mount_id)
{
	struct file_facts before, after;
	int fd;

	if (facts_beneath(dir, name, &before) || !as_recorded(file, &before))
		return -1;
	if (mount_id && before.mnt_id != mount_id)
		return -1; /* CRIU took the number of a kept fd for something else */
	fd = open_beneath(dir, name, flags);
	if (fd < 0)
		return -1;
	if (!facts_of(fd, &after) && same_file(&after, &before) && as_recorded(file, &after))
		return fd;
	close(fd);
	return -1;
}

static int open_in_kept(const struct known_file *file, const char *path, int flags,
			const struct criu_host *host)
{
	const char *slash = strrchr(path, '/');
	int dir = slash ? kept_dir(file->path, slash - path, host) : -1;

	return dir < 0 ? open_in(kept.tree, path, file, flags, kept.id)
		       : open_in(dir, slash + 1, file, flags, kept.id);
}

static bool is_root(const struct known_file *file)
{
	return file->path_size == 1 && *file->path == '.';
}

int known_file_open(const char *name, int flags, const struct criu_host *host)
{
	const struct known_file *file = find_file(name);
	char path[PATH_MAX];
	int tree, fd;

	/* No open file has these flags; Python says so. */
	if (flags & (O_CREAT | O_EXCL | O_TRUNC | (O_TMPFILE & ~O_DIRECTORY)))
		return -1;
	/* A mount of one file has no name beneath its root, and the fd of a tree is not opened. */
	if (!file || (is_root(file) && (!S_ISDIR(file->mode) || flags & O_PATH)))
		return -1;
	memcpy(path, file->path, file->path_size);
	path[file->path_size] = '\0';
	if (may_keep && keep_tree(file->mount, host))
		return open_in_kept(file, path, flags, host);
	tree = tree_fd(file->mount, host);
	if (tree < 0)
		return -1;
	fd = open_in(tree, path, file, flags, 0);
	close(tree);
	return fd;
}

void known_files_reset(void)
{
	for (size_t i = 0; i < nr_mounts; i++)
		free(mounts[i].key);
	nr_files = nr_mounts = 0;
	kept.mount = NULL;
}
