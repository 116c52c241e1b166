// SPDX-License-Identifier: GPL-2.0-only
/* Steers what CRIU does with the name of a bound socket, so that it leads to the mount. */
#define _GNU_SOURCE
#include "restore_sockets.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "embedded.h"
#include "kernel/facts.h"
#include "kernel/syscalls.h"
#include "log.h"
#include "socket_names.h"
#include "steer.h"

/* Where this task's names lead. */
static struct {
	enum {
		OUTSIDE, /* wherever CRIU is */
		NAMED,	 /* there too, but CRIU has named the directory of a relative name */
		INSIDE,	 /* to the mount of a record */
	} state;
	uint32_t id;
	int root;   /* to come back to, while INSIDE */
	int place;  /* on the mount, or -1 */
	bool bound; /* something was, while INSIDE */
} view;

void restore_sockets_reset(void)
{
	socket_names_reset();
	view.state = OUTSIDE;
}

static void __attribute__((noreturn)) end_task(const char *what)
{
	pr_err("can't %s", what);
	_exit(1);
}

void socket_view_leave(void)
{
	bool inside = view.state == INSIDE;

	view.state = OUTSIDE;
	if (!inside)
		return;
	/*
	 * By now CRIU may have gone back to another mount namespace, and so to its root. It goes
	 * on where fchdir fails (revert_unix_sk_cwd), but not when the task ends.
	 */
	if (view.bound && (fchdir(view.place) || python.restore_bound(view.id)))
		end_task("give a socket's file and directory what they had");
	/* A task must not go on anywhere else. The directory CRIU sets by itself. */
	if (fchdir(view.root) || chroot("."))
		end_task("come back from the mount of a socket");
	close(view.root);
	if (view.place >= 0)
		close(view.place);
}

static int enter(uint32_t id)
{
	view.root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (view.root < 0)
		return -1;
	view.state = INSIDE;
	view.id = id;
	view.bound = false;
	view.place = -1;
	if (!python.enter_socket_dir(id))
		view.place = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (view.place < 0) {
		socket_view_leave();
		errno = EIO;
		return -1;
	}
	return 0;
}

static const struct socket_name *find_name(const char *path)
{
	for (size_t i = 0; *path == '/' && i < nr_socket_names; i++)
		if (!strcmp(socket_names[i].name, path))
			return &socket_names[i];
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
	if (strncmp(path, SOCKET_KEY_PREFIX, strlen(SOCKET_KEY_PREFIX)))
		return chdir(path);
	view.id = strtoul(path + strlen(SOCKET_KEY_PREFIX), NULL, 16);
	view.state = NAMED;
	return 0;
}

/* 0 when it is not there. */
static uint32_t mount_id(int fd, const char *path, int flags)
{
	struct file_facts facts;

	return facts_at(fd, path, flags, &facts) ? 0 : facts.mnt_id;
}

/*
 * Only who is an admin of the socket's network namespace is given its file (unix_open_file,
 * net/unix/af_unix.c). A task in a user namespace on the host's network is not: the name leads
 * to the file as it led there a moment ago.
 */
static uint32_t mount_of_socket(int sk, const char *name)
{
	int fd = ioctl(sk, SIOCUNIXFILE_);
	uint32_t found;

	if (fd < 0)
		return errno == EPERM ? mount_id(AT_FDCWD, name, AT_SYMLINK_NOFOLLOW) : 0;
	found = mount_id(fd, "", AT_EMPTY_PATH);
	close(fd);
	return found;
}

/* The file that was made is on the mount that the working directory is on. */
static int check_file(int sk, const char *name)
{
	uint32_t wanted = mount_id(AT_FDCWD, ".", 0);

	if (wanted && mount_of_socket(sk, name) == wanted)
		return 0;
	errno = EXDEV;
	return -1;
}

static int steered_bind(int sk, const struct sockaddr *addr, socklen_t len)
{
	char buffer[SOCKET_NAME_SIZE];
	const char *name = socket_name_in(addr, len, buffer) ? buffer : NULL;
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
	const char *name = socket_name_in(addr, len, buffer) ? buffer : NULL;

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
	for (size_t i = 0; view.state == OUTSIDE && i < nr_socket_names; i++) {
		const char *name = socket_names[i].name;

		if (socket_names[i].deleted && *name == '/' &&
		    (!strcmp(path, name) ||
		     (socket_directory_size(name) == size && !memcmp(path, name, size)))) {
			if (enter(socket_names[i].number))
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

static const struct steering socket_steering[] = {
	{ "chdir", steered_chdir },	  { "bind", steered_bind },
	{ "connect", steered_connect },	  { "access", steered_access },
	{ "unlinkat", steered_unlinkat },
};

int restore_sockets_init(const char *why_not)
{
	const char *why = why_not;

	if (!nr_socket_names)
		return 0;
	for (size_t i = 0; !why && i < sizeof(socket_steering) / sizeof(socket_steering[0]); i++)
		if (steer_main_program(&socket_steering[i], 1))
			why = why_not_steered(socket_steering[i].name);
	if (why)
		pr_err("the images have unix sockets on detached mounts, but %s", why);
	return why ? -1 : 0;
}
