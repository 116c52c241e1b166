// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the shim calls: the fast path first, where there is one, then Python (entry.h). Nothing is
 * decided here.
 */
#include "embed.h"

#include <stdio.h>

#include "fast/known_files.h"
#include "fast/plain_files.h"
#include "fast/recorded_files.h"
#include "kernel/shared.h"

static const struct criu_host *host; /* the shim's, filled in anew in every init */

const struct criu_host *the_host(void)
{
	return host;
}

int cannot_start(const char *what, const char *why)
{
	char text[512];

	snprintf(text, sizeof(text), "can't start Python: %s: %s", what, why ? why : "?");
	host->log(LOG_ERROR, text);
	return -1;
}

static void reset_all(void)
{
	plain_files_reset();
	recorded_files_reset();
	known_files_reset();
	shared_free();
	reset_package();
}

/* For every link of a dump. */
static int dump_any_link(int fd, const char *link, const struct file_facts *facts)
{
	return plain_file_take(link, facts) ? DUMP_EXTERNAL : dump_link(fd, link, facts);
}

/* For every file of a restore, in its task. */
static int open_any_file(const char *name, int flags)
{
	const struct fd_sources criu = {
		.image_dir = host->image_dir,
		.fdstore_get = host->fdstore_get,
		.inherit_fd_get = host->inherit_fd_get,
	};
	int fd = known_file_open(name, flags, &criu);

	return fd >= 0 ? fd : restore_open(name, flags);
}

__attribute__((visibility("default"))) int criu_detached_start_python(const struct criu_host *criu,
								      struct embedded *entry)
{
	entry->build = BUILD_ID;
	if (criu->build != BUILD_ID)
		return -1;
	host = criu;
	if (!Py_IsInitialized() && start_interpreter())
		return -1;
	if (run_package())
		return cannot_start("the package",
				    "the reason is on stderr; build the plugin again");
	*entry = (struct embedded){
		.build = BUILD_ID,
		.dump_link = dump_any_link,
		.dump_ext_file = dump_ext_file,
		.dump_bound_socket = dump_bound_socket,
		.dump_peer = dump_peer,
		.dump_watches = dump_watches,
		.dump_deleted_watched = dump_deleted_watched,
		.pre_dump_watches = pre_dump_watches,
		.dump_thread_file = dump_thread_file,
		.dump_flush = dump_flush,
		.restore_init = restore_init,
		.restore_open = open_any_file,
		.restore_ext_file = restore_ext_file,
		.enter_socket_dir = enter_socket_dir,
		.restore_bound = restore_bound,
		.may_keep_fds = known_files_may_keep,
		.drop_cached_fds = known_files_drop_cached_fds,
		.reset = reset_all,
	};
	return 0;
}
