// SPDX-License-Identifier: GPL-2.0-only
/* The init and exit of a dump, its last image, its hooks. Links of files: dump_links.c. */
#define _GNU_SOURCE
#include "dump.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "criu.h"
#include "dump_links.h"
#include "dump_sockets.h"
#include "dump_threads.h"
#include "dump_watches.h"
#include "embedded.h"
#include "log.h"
#include "socket_names.h"
#include "steer.h"

#define RECORD_FILE "criu-detached.img"
#define DATA_FILE "criu-detached-data.img"

/* Links are steered. */
static bool ready;

/* --- the last image --- */

/*
 * The inventory is the last image of a dump, written while the tasks are still frozen
 * (write_img_inventory, cr_dump_tasks): the last moment at which a dump can fail.
 */
static int steered_openat(int dirfd, const char *path, int flags, ...)
{
	va_list args;
	mode_t mode;

	va_start(args, flags);
	mode = needs_mode(flags) ? va_arg(args, mode_t) : 0;
	va_end(args);
	if (python_runs() && flags & O_CREAT && !strcmp(path, "inventory.img") &&
	    python.dump_flush()) {
		errno = EIO;
		return -1;
	}
	return openat(dirfd, path, flags, mode);
}

static const struct steering flush_steering[] = {
	{ "openat", steered_openat },
	{ "openat64", steered_openat },
};

/* --- the hooks --- */

static bool is_fs_context(int fd)
{
	static const char wanted[] = "anon_inode:[fscontext]";
	char path[64], link[sizeof(wanted)];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return readlink(path, link, sizeof(link)) == sizeof(wanted) - 1 &&
	       !memcmp(link, wanted, sizeof(wanted) - 1);
}

int hook_dump_ext_file(int fd, int id)
{
	struct file_facts facts;

	if (!ready || facts_of(fd, &facts) || mount_known(facts.mnt_id))
		return -ENOTSUP;
	if (is_fs_context(fd)) {
		pr_err("can't dump a filesystem context (fsopen, fspick), which the kernel"
		       " does not show: make the mount of it, or close it");
		return -1;
	}
	/* Sockets, anonymous inodes and the like are on no mount that could be detached. */
	if (!S_ISBLK(facts.mode) && !S_ISCHR(facts.mode))
		return -ENOTSUP;
	return start_python() ? -ENOTSUP : python.dump_ext_file(fd, id, &facts);
}

static int has_id(struct external *ext, void *id)
{
	return !strcmp(ext->id, id);
}

/* The user will give CRIU the socket itself at restore (--external unix[...]). */
static bool is_inherited(int ino)
{
	char id[32];

	snprintf(id, sizeof(id), "unix[%u]", (unsigned int)ino);
	return criu.external_for_each_type("unix", has_id, id) != 0;
}

/* CRIU connects no others again, and says so itself (__dump_external_socket). */
static bool is_datagram(int fd)
{
	int type = 0;
	socklen_t len = sizeof(type);

	return !getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) && type == SOCK_DGRAM;
}

int hook_dump_unix_sk(int fd, int ino)
{
	struct sockaddr_storage addr;
	socklen_t len = sizeof(addr);
	char name[SOCKET_NAME_SIZE];

	if (!ready || !is_datagram(fd) || getpeername(fd, (struct sockaddr *)&addr, &len) ||
	    !socket_name_in((struct sockaddr *)&addr, len, name) || is_inherited(ino))
		return -ENOTSUP;
	return start_python() ? -ENOTSUP : python.dump_peer(name);
}

/* --- init and exit --- */

/* Records of an earlier dump into this directory must not outlive it. */
static int remove_stale(const char *name)
{
	if (!unlinkat(criu.get_image_dir(), name, 0) || errno == ENOENT)
		return 0;
	pr_err("can't remove the stale %s: %s", name, strerror(errno));
	return -1;
}

int init_dump(const char *missing)
{
	ready = false;
	if (missing) {
		pr_warn("this CRIU has no function %s: going on without the plugin", missing);
		return 0;
	}
	if (remove_stale(RECORD_FILE) || remove_stale(DATA_FILE))
		return -1;
	if (dump_links_init()) {
		pr_warn("%s: going on without the plugin", why_not_steered("readlink"));
		return 0;
	}
	host.flushes = !STEER(flush_steering);
	if (dump_threads_init())
		pr_warn("%s: what a thread alone has on a detached mount is lost",
			why_not_steered("getpriority"));
	dump_sockets_init();
	dump_watches_init(false);
	ready = true;
	pr_debug("ready to dump");
	return 0;
}

int init_pre_dump(const char *missing)
{
	if (!missing)
		dump_watches_init(true);
	return 0;
}

void exit_dump(int ret)
{
	/* Nothing should be left to write here, where it is too late to fail. */
	if (!ret && ready && python_runs())
		python.dump_flush();
	ready = false;
}
