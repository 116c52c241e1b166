// SPDX-License-Identifier: GPL-2.0-only
#define _GNU_SOURCE
#include "sockets.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/*
 * The directory that CRIU starts a relative name from (UnixSkEntry.name_dir) is this with
 * the record's id. CRIU's own begin with a slash.
 */
#define KEY_PREFIX "criu-detached["
#define KEY_FORMAT KEY_PREFIX "%x]"

/* --- names --- */

static struct socket_name {
	char name[SOCKET_NAME_SIZE];
	uint32_t number; /* dump: the place; restore: the record's id */
	bool deleted;
} *names;
static size_t nr_names;

static int add_name(const char *name, uint32_t number, bool deleted)
{
	struct socket_name *grown = realloc(names, (nr_names + 1) * sizeof(*names));

	if (!grown)
		return -1;
	names = grown;
	snprintf(names[nr_names].name, sizeof(names->name), "%s", name);
	names[nr_names].number = number;
	names[nr_names].deleted = deleted;
	nr_names++;
	return 0;
}

/* Length of the directory part of an absolute name, without the slashes at its end. */
static size_t directory_size(const char *name)
{
	size_t size = strrchr(name, '/') - name;

	while (size && name[size - 1] == '/')
		size--;
	return size;
}

static bool same_directory(const char *one, const char *other)
{
	size_t size = directory_size(one);

	return size == directory_size(other) && !memcmp(one, other, size);
}

enum socket_note socket_name_note(const char *name, uint32_t place, bool deleted)
{
	if (*name != '/')
		return SOCKET_NOTED;
	for (size_t i = 0; i < nr_names; i++) {
		const struct socket_name *n = &names[i];

		bool same = !strcmp(n->name, name);

		/* The sockets that a listening one has accepted have its name. */
		if (same && n->number == place && n->deleted == deleted)
			return SOCKET_NOTED;
		if (n->number != place &&
		    (same || (n->deleted && deleted && same_directory(n->name, name))))
			return SOCKET_CONFLICT;
	}
	return add_name(name, place, deleted) ? SOCKET_NO_MEMORY : SOCKET_NOTED;
}

/* --- dump --- */

/* A name in an address; NULL: it is none, or one without a file. */
static const char *name_in(const struct sockaddr *addr, socklen_t len, char *name)
{
	const struct sockaddr_un *un = (const struct sockaddr_un *)addr;
	size_t size = len - offsetof(struct sockaddr_un, sun_path);

	if (len <= offsetof(struct sockaddr_un, sun_path) || addr->sa_family != AF_UNIX ||
	    !un->sun_path[0] || size >= SOCKET_NAME_SIZE)
		return NULL;
	memcpy(name, un->sun_path, size);
	name[size] = '\0';
	return name;
}

bool socket_name_of(int sk, char name[SOCKET_NAME_SIZE])
{
	struct sockaddr_storage addr;
	socklen_t len = sizeof(addr);

	return !getsockname(sk, (struct sockaddr *)&addr, &len) &&
	       name_in((struct sockaddr *)&addr, len, name);
}

static struct {
	int fd; /* -1: there is none */
	struct stat st;
	char link[64 + SOCKET_NAME_SIZE];
} stand_in = { .fd = -1 };

int socket_stand_in(int fd, int other, uint32_t id, const char *name, bool deleted)
{
	const char *end = deleted ? " (deleted)" : "";

	if (fstat(fd, &stand_in.st))
		return -1;
	if (*name == '/') {
		snprintf(stand_in.link, sizeof(stand_in.link), "/%s", end);
	} else {
		/* CRIU leaves these out as well (cut_path_ending, criu/util.c). */
		name += strncmp(name, "./", 2) ? 0 : 2;
		snprintf(stand_in.link, sizeof(stand_in.link), KEY_FORMAT "/%s%s", id, name, end);
	}
	if (other >= 0) {
		close(fd);
		fd = other;
	}
	stand_in.fd = fd;
	return fd;
}

const char *socket_stand_in_link(int fd)
{
	if (fd != stand_in.fd)
		return NULL;
	stand_in.fd = -1;
	return stand_in.link;
}

bool socket_stand_in_stat(int fd, struct stat *st)
{
	if (fd != stand_in.fd)
		return false;
	*st = stand_in.st;
	return true;
}

/* --- restore --- */

static int (*lead_there)(uint32_t id);
static int (*bound_there)(uint32_t id);

/* Where this task's names lead. */
static struct {
	enum {
		OUTSIDE, /* wherever CRIU is */
		NAMED,	 /* there too, but CRIU has named the directory of a relative name */
		INSIDE,	 /* to the mount of a record */
	} state;
	uint32_t id;
	int root;   /* to come back to, while INSIDE */
	bool bound; /* something was, while INSIDE */
} view;

void sockets_expect(int (*lead)(uint32_t id), int (*bound)(uint32_t id))
{
	lead_there = lead;
	bound_there = bound;
}

int socket_name_add(uint32_t id, const char *name, int deleted)
{
	return add_name(name, id, deleted);
}

bool sockets_recorded(void)
{
	return nr_names > 0;
}

void sockets_reset(void)
{
	free(names);
	names = NULL;
	nr_names = 0;
	stand_in.fd = -1;
	view.state = OUTSIDE;
}

void socket_view_leave(void)
{
	if (view.state == INSIDE && view.bound)
		bound_there(view.id);
	/* A task must not go on anywhere else. The directory CRIU sets by itself. */
	if (view.state == INSIDE && (fchdir(view.root) || chroot(".") || close(view.root)))
		_exit(1);
	view.state = OUTSIDE;
}

static int enter(uint32_t id)
{
	view.root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (view.root < 0)
		return -1;
	view.state = INSIDE;
	view.id = id;
	view.bound = false;
	if (lead_there(id)) {
		socket_view_leave();
		errno = EIO;
		return -1;
	}
	return 0;
}

static const struct socket_name *find_name(const char *path)
{
	for (size_t i = 0; *path == '/' && i < nr_names; i++)
		if (!strcmp(names[i].name, path))
			return &names[i];
	return NULL;
}

/* Make a name lead to its mount: 1 if it does, 0 if it is no concern of ours, or -1. */
static int follow(const char *path)
{
	const struct socket_name *found;

	if (view.state == INSIDE)
		return 1;
	if (view.state == NAMED)
		return enter(view.id) ? -1 : 1;
	found = find_name(path);
	if (!found)
		return 0;
	return enter(found->number) ? -1 : 1;
}

static int steered_chdir(const char *path)
{
	if (strncmp(path, KEY_PREFIX, strlen(KEY_PREFIX)))
		return chdir(path);
	view.id = strtoul(path + strlen(KEY_PREFIX), NULL, 16);
	view.state = NAMED;
	return 0;
}

static uint64_t mount_id(int fd, const char *path, int flags)
{
	struct statx stx;

	return statx(fd, path, flags, STATX_MNT_ID, &stx) ? 0 : stx.stx_mnt_id;
}

/*
 * Only who is an admin of the socket's network namespace is given its file (unix_open_file,
 * net/unix/af_unix.c). A task in a user namespace on the host's network is not: the name leads
 * to the file as it led there a moment ago.
 */
static uint64_t mount_of_socket(int sk, const char *name)
{
	int fd = ioctl(sk, SIOCUNIXFILE_);
	uint64_t found;

	if (fd < 0)
		return errno == EPERM ? mount_id(AT_FDCWD, name, AT_SYMLINK_NOFOLLOW) : 0;
	found = mount_id(fd, "", AT_EMPTY_PATH);
	close(fd);
	return found;
}

/* The file that was made is on the mount that the working directory is on. */
static int check_file(int sk, const char *name)
{
	uint64_t wanted = mount_id(AT_FDCWD, ".", 0);

	if (wanted && mount_of_socket(sk, name) == wanted)
		return 0;
	errno = EXDEV;
	return -1;
}

static int steered_bind(int sk, const struct sockaddr *addr, socklen_t len)
{
	char buffer[SOCKET_NAME_SIZE];
	const char *name = name_in(addr, len, buffer);
	int found = name ? follow(name) : 0;
	struct stat st;

	if (found < 0)
		return -1;
	/* CRIU could not remove what was left of the old socket: its unlinkat comes too early. */
	if (found && !lstat(name, &st) && S_ISSOCK(st.st_mode))
		unlink(name);
	if (bind(sk, addr, len))
		return -1;
	view.bound |= found;
	return found ? check_file(sk, name) : 0;
}

static int steered_connect(int sk, const struct sockaddr *addr, socklen_t len)
{
	char buffer[SOCKET_NAME_SIZE];
	const char *name = name_in(addr, len, buffer);

	return name && follow(name) < 0 ? -1 : connect(sk, addr, len);
}

/*
 * The first thing that is done to a deleted name, or to its directory (bind_on_deleted).
 * All else that is done to it then happens on the mount.
 */
static int steered_access(const char *path, int mode)
{
	size_t size = strlen(path);

	while (size && path[size - 1] == '/')
		size--;
	if (view.state == NAMED)
		return enter(view.id) ? -1 : access(path, mode);
	for (size_t i = 0; view.state == OUTSIDE && i < nr_names; i++) {
		const char *name = names[i].name;

		if (names[i].deleted && *name == '/' &&
		    (!strcmp(path, name) ||
		     (directory_size(name) == size && !memcmp(path, name, size)))) {
			if (enter(names[i].number))
				return -1;
			break;
		}
	}
	return access(path, mode);
}

/* Before any socket is bound: what is there by that name is not on the mount. */
static int steered_unlinkat(int dirfd, const char *path, int flags)
{
	if (dirfd == AT_FDCWD && view.state != INSIDE && (view.state == NAMED || find_name(path))) {
		errno = ENOENT;
		return -1;
	}
	return unlinkat(dirfd, path, flags);
}

const struct steering socket_steering[] = {
	{ "chdir", steered_chdir },	  { "bind", steered_bind },
	{ "connect", steered_connect },	  { "access", steered_access },
	{ "unlinkat", steered_unlinkat },
};
const size_t nr_socket_steering = sizeof(socket_steering) / sizeof(socket_steering[0]);
