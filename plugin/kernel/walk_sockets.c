// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which unix sockets are bound to files: sock_diag(7) tells it of all those of a network namespace.
 * One that was made in a namespace that no task is in is asked by itself, as only a duplicate of it
 * can be (pidfd_getfd(2)).
 */
#include "look.h"

#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "kernel.h"
#include "syscalls.h"

struct bound {
	uint32_t socket; /* its inode */
	uint32_t ino;	 /* of the file, cut to 32 bits */
	uint64_t dev;	 /* of the file's superblock; 0: it is bound to none */
	uint64_t name;
};

struct space {
	uint64_t ino;
	int netlink; /* -errno: it cannot be asked */
};

struct sockets {
	struct bound *bound; /* by inode */
	size_t count, capacity;
	struct space *spaces;
	size_t nr_spaces, max_spaces;
	bool failed; /* no memory */
};

struct sockets *sockets_new(void)
{
	return calloc(1, sizeof(struct sockets));
}

uint64_t sys_name_hash(const char *name, size_t size)
{
	uint64_t hash = 0xcbf29ce484222325; /* FNV-1a */

	for (size_t i = 0; i < size; i++)
		hash = (hash ^ (unsigned char)name[i]) * 0x100000001b3;
	return hash;
}

/* --- sock_diag --- */

static int open_netlink(void)
{
	return or_errno(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG));
}

static int ask_for_all(int netlink)
{
	struct {
		struct nlmsghdr header;
		struct unix_diag_req req;
	} message = {
		.header = { .nlmsg_len = sizeof(message),
			    .nlmsg_type = SOCK_DIAG_BY_FAMILY,
			    .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP },
		.req = { .sdiag_family = AF_UNIX,
			 .udiag_states = ~0U,
			 .udiag_show = UDIAG_SHOW_NAME | UDIAG_SHOW_VFS },
	};

	return send(netlink, &message, sizeof(message), 0) < 0 ? -errno : 0;
}

static void read_attributes(const struct unix_diag_msg *msg, size_t size, struct bound *found,
			    const char **name, size_t *name_size)
{
	const char *at = (const char *)msg + NLMSG_ALIGN(sizeof(*msg));
	size_t left = size - NLMSG_ALIGN(sizeof(*msg));

	while (left >= sizeof(struct nlattr)) {
		struct nlattr attr;
		const char *value = at + NLA_HDRLEN;

		memcpy(&attr, at, sizeof(attr));
		if (attr.nla_len < NLA_HDRLEN || attr.nla_len > left)
			return;
		if (attr.nla_type == UNIX_DIAG_VFS) {
			struct unix_diag_vfs vfs;

			memcpy(&vfs, value, sizeof(vfs));
			found->dev = makedev(vfs.udiag_vfs_dev >> 20, vfs.udiag_vfs_dev & 0xfffff);
			found->ino = vfs.udiag_vfs_ino;
		} else if (attr.nla_type == UNIX_DIAG_NAME) {
			*name = value;
			*name_size = strnlen(value, attr.nla_len - NLA_HDRLEN);
		}
		if ((size_t)NLA_ALIGN(attr.nla_len) >= left)
			return;
		left -= NLA_ALIGN(attr.nla_len);
		at += NLA_ALIGN(attr.nla_len);
	}
}

/* Call a function for each socket that is bound, or not; 0 or -errno. */
static int for_each_socket(int netlink, void (*work)(void *, const struct bound *), void *arg)
{
	static char buf[64 << 10] __attribute__((aligned(8)));
	int err = ask_for_all(netlink);

	while (!err) {
		ssize_t size = recv(netlink, buf, sizeof(buf), 0);
		const struct nlmsghdr *header = (const void *)buf;

		if (size < 0 && errno == EINTR)
			continue;
		if (size < 0)
			return -errno;
		for (; NLMSG_OK(header, size); header = NLMSG_NEXT(header, size)) {
			const struct unix_diag_msg *msg = NLMSG_DATA(header);
			struct bound found = { 0 };
			const char *name = "";
			size_t name_size = 0;

			if (header->nlmsg_type == NLMSG_DONE)
				return 0;
			if (header->nlmsg_type == NLMSG_ERROR)
				return ((const struct nlmsgerr *)NLMSG_DATA(header))->error;
			found.socket = msg->udiag_ino;
			read_attributes(msg, header->nlmsg_len - NLMSG_HDRLEN, &found, &name,
					&name_size);
			found.name = sys_name_hash(name, name_size);
			work(arg, &found);
		}
	}
	return err;
}

/* --- the tables --- */

static void *grown(void *array, size_t *capacity, size_t size)
{
	size_t wanted = *capacity ? *capacity * 2 : 256;
	void *bigger = realloc(array, wanted * size);

	if (bigger)
		*capacity = wanted;
	return bigger;
}

static void add_socket(void *arg, const struct bound *found)
{
	struct sockets *sockets = arg;

	if (sockets->count == sockets->capacity) {
		struct bound *bigger = grown(sockets->bound, &sockets->capacity, sizeof(*bigger));

		if (!bigger) {
			sockets->failed = true;
			return;
		}
		sockets->bound = bigger;
	}
	sockets->bound[sockets->count++] = *found;
}

static int by_inode(const void *one, const void *other)
{
	uint32_t a = ((const struct bound *)one)->socket;
	uint32_t b = ((const struct bound *)other)->socket;

	return (a > b) - (a < b);
}

static const struct bound *find_socket(const struct sockets *sockets, uint64_t inode)
{
	struct bound key = { .socket = (uint32_t)inode };

	if (!sockets->count)
		return NULL;
	return bsearch(&key, sockets->bound, sockets->count, sizeof(key), by_inode);
}

/* A netlink socket of the network namespace of a task, which this child is left in. */
static int netlink_of(const struct look *look)
{
	int fd = openat(look->dir, "ns/net", O_RDONLY | O_CLOEXEC), err;

	if (fd < 0)
		return -errno;
	err = or_errno(setns(fd, CLONE_NEWNET));
	close(fd);
	return err ? err : open_netlink();
}

/* Read the sockets of a task's network namespace, if they were not before. */
static void read_namespace(struct look *look)
{
	struct sockets *sockets = look->sockets;
	struct statx stx;
	struct space *space;

	if (look->net || glance(look->dir, "ns/net", &stx))
		return;
	look->net = stx.stx_ino;
	for (size_t i = 0; i < sockets->nr_spaces; i++)
		if (sockets->spaces[i].ino == look->net)
			return;
	if (sockets->nr_spaces == sockets->max_spaces) {
		space = grown(sockets->spaces, &sockets->max_spaces, sizeof(*space));
		if (!space) {
			sockets->failed = true;
			return;
		}
		sockets->spaces = space;
	}
	space = &sockets->spaces[sockets->nr_spaces++];
	space->ino = look->net;
	space->netlink = netlink_of(look);
	/* What it leaves out is asked by itself. */
	if (space->netlink >= 0) {
		for_each_socket(space->netlink, add_socket, sockets);
		qsort(sockets->bound, sockets->count, sizeof(*sockets->bound), by_inode);
	}
}

/* --- one socket --- */

static void note_bound(struct look *look, uint64_t number, const struct bound *found,
		       uint32_t mnt_id)
{
	struct statx none = { 0 };
	struct seen *seen = look_note(look, 's', number, &none);

	if (!seen)
		return;
	seen->dev = found->dev;
	seen->ino = found->ino;
	seen->end = found->name;
	seen->socket = found->socket;
	seen->mnt_id = mnt_id;
}

static bool is_unix(const struct look *look, const char *fd)
{
	char path[64], protocol[16];
	ssize_t size;

	/* sockfs_xattr_get: UNIX, UNIX-STREAM, TCP and so on */
	snprintf(path, sizeof(path), "/proc/%d/task/%d/fd/%s", look->pid, look->tid, fd);
	size = getxattr(path, "system.sockprotoname", protocol, sizeof(protocol));
	return size < 0 || (size >= 4 && !memcmp(protocol, "UNIX", 4));
}

/* Of a thread from Linux 6.9 on. */
static int pid_fd_of(struct look *look)
{
	if (look->pid_fd < 0 && look->tid == look->pid)
		look->pid_fd = or_errno(syscall(NR_pidfd_open, look->pid, 0));
	else if (look->pid_fd < 0)
		look->pid_fd =
			or_errno(syscall(NR_pidfd_open, look->tid, O_EXCL /* PIDFD_THREAD */));
	return look->pid_fd;
}

/* 0 or an errno. */
static int ask_socket(struct look *look, uint64_t number, uint64_t inode)
{
	int pid_fd = pid_fd_of(look), file, error;
	struct bound found = { .socket = (uint32_t)inode };
	struct statx stx;

	if (pid_fd < 0)
		return -pid_fd;
	file = sys_bound_file(pid_fd, (int)number, "");
	if (file < 0)
		return -file;
	error = glance(file, "", &stx);
	close(file);
	if (error)
		return error;
	found.dev = makedev(stx.stx_dev_major, stx.stx_dev_minor);
	found.ino = (uint32_t)stx.stx_ino;
	note_bound(look, number, &found, stx.stx_mnt_id);
	return 0;
}

/* Errors that say that it is bound to no file (unix_open_file, net/unix/af_unix.c), or closed. */
static bool is_unbound(int error)
{
	return ended(error) || error == EAFNOSUPPORT || error == EBADF;
}

void look_at_socket(struct look *look, int fds, const char *name, const struct statx *stx)
{
	uint64_t number = strtoul(name, NULL, 10);
	const struct bound *found;
	int error;

	(void)fds;
	if (!look->sockets) {
		struct bound plain = { .socket = (uint32_t)stx->stx_ino };

		note_bound(look, number, &plain, 0);
		return;
	}
	read_namespace(look);
	found = find_socket(look->sockets, stx->stx_ino);
	if (found) {
		if (found->dev)
			note_bound(look, number, found, 0);
		return;
	}
	if (!is_unix(look, name))
		return;
	error = ask_socket(look, number, stx->stx_ino);
	if (error && !is_unbound(error))
		look_note_error(look, 's', number, 0, error);
}

/* --- at the end --- */

static void note_late(void *arg, const struct bound *found)
{
	struct look *look = arg;

	if (found->socket && found->dev &&
	    !has_number(look->walk->devs, look->walk->nr_devs, found->dev))
		note_bound(look, 0, found, 0);
}

void look_at_bound_sockets(struct look *look)
{
	look->pid = look->tid = 0;
	for (size_t i = 0; i < look->sockets->nr_spaces; i++) {
		int netlink = look->sockets->spaces[i].netlink;
		int err = netlink < 0 ? 0 : for_each_socket(netlink, note_late, look);

		if (err)
			look_note_error(look, 's', 0, 0, -err);
	}
	if (look->sockets->failed)
		look->arena->error = ENOMEM;
}

/* --- by name --- */

struct named {
	uint64_t hash;
	struct seen *found;
	size_t count, capacity;
};

static void note_named(void *arg, const struct bound *found)
{
	struct named *named = arg;

	if (found->dev && found->name == named->hash && named->count < named->capacity)
		named->found[named->count++] = (struct seen){
			.what = 's', .socket = found->socket, .dev = found->dev, .ino = found->ino
		};
}

int sys_sockets_named(const char *name, size_t size, struct seen *found, size_t capacity)
{
	struct named named = { sys_name_hash(name, size), found, 0, capacity };
	int err, netlink = open_netlink();

	if (netlink < 0)
		return netlink;
	err = for_each_socket(netlink, note_named, &named);
	close(netlink);
	return err ? err : (int)named.count;
}

int sys_socket(void)
{
	return or_errno(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
}
