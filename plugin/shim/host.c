// SPDX-License-Identifier: GPL-2.0-only
/* What Python may ask of CRIU: the functions behind struct criu_host (host.h). */
#define _GNU_SOURCE
#include "embed/host.h"

#include <sched.h>
#include <stdio.h>

#include "criu.h"
#include "dump_deleted.h"
#include "embedded.h"
#include "log.h"
#include "socket_names.h"
#include "watch_names.h"

static void host_log(int level, const char *text)
{
	print_line(level, "%s", text);
}

static int host_mount_known(int mnt_id)
{
	return mount_known(mnt_id);
}

static int host_dumps_mount_namespace(void)
{
	return (*criu.root_ns_mask & CLONE_NEWNS) != 0;
}

static int host_dumps_user_namespace(void)
{
	return (*criu.root_ns_mask & CLONE_NEWUSER) != 0;
}

static const char *host_plugin_option(int index)
{
	char **argv = NULL;
	int argc = 0;

	/* The first one is a program name, for getopt_long(3). */
	if (!criu.plugin_get_options || criu.plugin_get_options(&argc, &argv))
		return NULL;
	return index + 1 < argc ? argv[index + 1] : NULL;
}

static int host_need_plugin(void)
{
	return criu.add_inventory_plugin(PLUGIN_NAME);
}

static int host_inherit_fd_add(int fd, const char *key)
{
	return criu.inherit_fd_add(fd, (char *)key);
}

static int host_inherit_fd_get(const char *key)
{
	return criu.inherit_fd_lookup_id((char *)key);
}

/* CRIU copies the path. */
static int host_watch_name_add(uint64_t dev, uint64_t ino, const char *name)
{
	char path[64];

	if (snprintf(path, sizeof(path), "/%s", name) >= (int)sizeof(path))
		return -1;
	return watch_name_note(dev, ino, name) || criu.irmap_scan_path_add(path) ? -1 : 0;
}

struct criu_host host;

void host_fill(void)
{
	host = (struct criu_host){
		.build = BUILD_ID,
		.log = host_log,
		.image_dir = criu.get_image_dir,
		.mount_known = host_mount_known,
		.dumps_mount_namespace = host_dumps_mount_namespace,
		.mntns_root = criu.mntns_get_root_by_mnt_id,
		.need_plugin = host_need_plugin,
		.fdstore_add = criu.fdstore_add,
		.fdstore_get = criu.fdstore_get,
		.inherit_fd_add = host_inherit_fd_add,
		.inherit_fd_get = host_inherit_fd_get,
		.dumps_user_namespace = host_dumps_user_namespace,
		.userns_uid = criu.userns_uid,
		.userns_gid = criu.userns_gid,
		.plugin_option = host_plugin_option,
		.socket_name_add = socket_name_add,
		.deleted_files_left = deleted_files_left,
		.watch_name_add = host_watch_name_add,
	};
}
