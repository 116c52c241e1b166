// SPDX-License-Identifier: GPL-2.0-only
/* openat of "ile[<mnt_id>:<inode>]" -> Python opens the file on its mount. */
#define _GNU_SOURCE
#include "restore.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include "criu.h"
#include "embedded.h"
#include "log.h"
#include "restore_sockets.h"
#include "steer.h"

/* The images need the plugin, and mounts are realised. */
static bool ready;

/* --- files --- */

static bool is_key_name(const char *path)
{
	return path && !strncmp(path, "ile[", 4);
}

static int open_key_name(const char *name, int flags)
{
	int fd = python.restore_open(name, flags);

	if (fd >= 0)
		return fd;
	errno = fd == -1 ? EIO : -fd;
	return -1;
}

static int steered_openat(int dirfd, const char *path, int flags, ...)
{
	va_list args;
	mode_t mode;

	if (is_key_name(path))
		return open_key_name(path, flags);
	va_start(args, flags);
	mode = needs_mode(flags) ? va_arg(args, mode_t) : 0;
	va_end(args);
	return openat(dirfd, path, flags, mode);
}

static int steered_openat_2(int dirfd, const char *path, int flags)
{
	return is_key_name(path) ? open_key_name(path, flags) : openat(dirfd, path, flags);
}

static const struct steering file_steering[] = {
	{ "openat", steered_openat },
	{ "openat64", steered_openat },
	{ "__openat_2", steered_openat_2 },
	{ "__openat64_2", steered_openat_2 },
};

/*
 * restore_fs (criu/files.c) opens the task's root and working directory, its very
 * last files, and changes to each: after that no tree fd is needed.
 */
static int steered_fchdir(int fd)
{
	python.drop_cached_fds();
	socket_view_leave();
	return fchdir(fd);
}

static const struct steering fchdir_steering[] = {
	{ "fchdir", steered_fchdir },
};

/* --- terminals --- */

/*
 * CRIU makes the name of a terminal's other end from its directory and "ptmx" or "pts/N"
 * (pty_alloc_fake_reg, criu/tty.c), and takes it for a defect when there is none. An external
 * key has no directory: all of it will do, for what comes after it tells which end is meant.
 */
static char *steered_strrchr(char *text, int character)
{
	char *found = strrchr(text, character);

	if (!found && character == '/' && !strncmp(text, "file[", 5))
		found = strrchr(text, ']');
	return found;
}

static const struct steering terminal_steering[] = {
	{ "strrchr", steered_strrchr },
};

/* --- the hook --- */

int hook_restore_ext_file(int id, bool *retry_needed)
{
	int ret;

	if (!ready)
		return -ENOTSUP;
	ret = python.restore_ext_file(id);
	if (ret != -ENOTSUP && criu.plugin_get_options)
		*retry_needed = false;
	return ret;
}

/* --- init and exit --- */

/*
 * CRIU's inventory says whether images need the plugin. Inventories older than that
 * field make CRIU answer yes for every plugin, however often it is asked; the plugin
 * did not exist then.
 */
static bool images_need_plugin(void)
{
	size_t n = sizeof(PLUGIN_NAME);

	return criu.check_and_remove_inventory_plugin(PLUGIN_NAME, n) &&
	       !criu.check_and_remove_inventory_plugin(PLUGIN_NAME, n);
}

int init_restore(const char *missing)
{
	const char *why_not;

	ready = false;
	restore_sockets_reset();
	if (!criu.check_and_remove_inventory_plugin) {
		pr_warn("this CRIU has no plugin inventory: going on without the plugin");
		return 0;
	}
	if (!images_need_plugin())
		return 0;
	if (missing) {
		pr_err("the images need the plugin, but this CRIU has no function %s", missing);
		return -1;
	}
	if (STEER(file_steering)) {
		pr_err("the images need the plugin, but %s", why_not_steered("openat"));
		return -1;
	}
	if (start_python() || python.restore_init())
		return -1;
	STEER(terminal_steering); /* where it can't be, CRIU aborts at the terminals that need it */
	why_not = STEER(fchdir_steering) ? why_not_steered("fchdir") : NULL;
	python.may_keep_fds(!why_not);
	if (restore_sockets_init(why_not))
		return -1;
	ready = true;
	return 0;
}

void exit_restore(void)
{
	ready = false;
}
