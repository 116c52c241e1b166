// SPDX-License-Identifier: GPL-2.0-only
/* Python's start inside CRIU, and from then on the way from the shim to its entry points. */
#include <Python.h>

#include "embed.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fast/known_files.h"
#include "fast/plain_files.h"
#include "fast/recorded_files.h"
#include "kernel/shared.h"

/*
 * Python runs on in the restored tasks, and does not know that it was forked: CRIU makes them by
 * clone3(2) or clone(2) (fork_with_pid, criu/cr-restore.c), and nobody calls PyOS_AfterFork_Child.
 * What that would do (Modules/posixmodule.c of CPython) is not needed here:
 *
 * - It frees locks that other threads held. CRIU's process has one thread, and forks between its
 *   own steps, never from Python: the lock of the interpreter is free, since start_interpreter left
 *   it, and so are those of imports, allocators and libc.
 * - It finds the thread's state again. A task has a copy of all memory and the parent's thread
 *   pointer (neither CLONE_VM nor CLONE_SETTLS), so pthread_self(), Python's name for the thread,
 *   is as before, and so is what is kept for each thread, of Python and of cffi.
 * - It notes the new thread id of the kernel, which is only ever told to who asks for it.
 * - It drops signals that wait for a Python handler. There are none: see isolate.
 * - It calls what was registered for the child (by random, threading, logging). None of that is
 *   loaded (tests/unit/test_structure.py).
 *
 * And a task goes on with the parent's stack: from 3.14 on Python measures the stack at its start,
 * and takes being outside of it for an overflow. No process id may be kept from before the fork.
 */

static const struct criu_host *host; /* the shim's, filled in anew in every init */

const struct criu_host *the_host(void)
{
	return host;
}

static int complain(const char *what, const char *why)
{
	char text[512];

	snprintf(text, sizeof(text), "can't start Python: %s: %s", what, why ? why : "?");
	host->log(LOG_ERROR, text);
	return -1;
}

/*
 * No environment, no user site, no site at all, no argument parsing, nothing is written and
 * nothing is searched: all code is in libpython and here. cffi would read the environment.
 */
static PyStatus isolate(PyConfig *config)
{
	PyPreConfig before;
	PyStatus status;

	PyConfig_InitIsolatedConfig(config);
	PyPreConfig_InitIsolatedConfig(&before);
	before.utf8_mode = 1; /* one codec less to load than with the locale's */
	status = Py_PreInitialize(&before);
	if (PyStatus_Exception(status))
		return status;
	config->install_signal_handlers = 0;
	config->site_import = 0;
	config->write_bytecode = 0;
	config->pathconfig_warnings = 0;
	config->use_frozen_modules = 1;
	config->module_search_paths_set = 1; /* to none */
	PyImport_FrozenModules = frozen_modules;
	if (PyImport_ExtendInittab(linked_modules))
		return PyStatus_NoMemory();
	return PyConfig_SetString(config, &config->executable, python_executable);
}

/*
 * Python does not start where a standard fd is a directory, as it may be when criu was
 * started with closed ones: while Python looks, /dev/null is there instead.
 */
struct hidden {
	int saved; /* -1: nothing was hidden */
	int fd_flags;
};

static struct hidden hide_directory(int fd)
{
	struct hidden hidden = { -1, fcntl(fd, F_GETFD) };
	struct stat st;
	int null;

	if (fstat(fd, &st) || !S_ISDIR(st.st_mode))
		return hidden;
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null < 0)
		return hidden;
	hidden.saved = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
	if (hidden.saved >= 0)
		dup3(null, fd, O_CLOEXEC);
	close(null);
	return hidden;
}

static void show_directory(int fd, struct hidden hidden)
{
	if (hidden.saved < 0)
		return;
	dup3(hidden.saved, fd, hidden.fd_flags & FD_CLOEXEC ? O_CLOEXEC : 0);
	close(hidden.saved);
}

static int start_interpreter(void)
{
	struct hidden hidden[3];
	PyConfig config;
	PyStatus status = isolate(&config);

	for (int fd = 0; fd < 3; fd++)
		hidden[fd] = hide_directory(fd);
	if (!PyStatus_Exception(status))
		status = Py_InitializeFromConfig(&config);
	PyConfig_Clear(&config);
	for (int fd = 0; fd < 3; fd++)
		show_directory(fd, hidden[fd]);
	if (PyStatus_Exception(status))
		return complain(status.func, status.err_msg);
	/* A short life without cycles: collections would only walk the modules and records. */
	PyGC_Disable();
	/* cffi's entry points take the lock themselves. */
	PyEval_SaveThread();
	return 0;
}

static void reset(void)
{
	plain_files_reset();
	recorded_files_reset();
	known_files_reset();
	shared_free();
	reset_package();
}

/* The entry point for every link of a dump. */
static int dump_plain_link(int fd, const char *link, const struct file_facts *facts)
{
	return plain_file_take(link, facts) ? DUMP_EXTERNAL : dump_link(fd, link, facts);
}

/* The entry point for every file of a restore. */
static int open_known(const char *name, int flags)
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
		return complain("the package", "the reason is on stderr; build the plugin again");
	*entry = (struct embedded){
		.build = BUILD_ID,
		.dump_link = dump_plain_link,
		.dump_ext_file = dump_ext_file,
		.dump_bound_socket = dump_bound_socket,
		.dump_peer = dump_peer,
		.dump_watches = dump_watches,
		.dump_deleted_watched = dump_deleted_watched,
		.pre_dump_watches = pre_dump_watches,
		.dump_thread_file = dump_thread_file,
		.dump_flush = dump_flush,
		.restore_init = restore_init,
		.restore_open = open_known,
		.restore_ext_file = restore_ext_file,
		.enter_socket_dir = enter_socket_dir,
		.restore_bound = restore_bound,
		.may_keep_fds = known_files_may_keep,
		.drop_cached_fds = known_files_drop_cached_fds,
		.reset = reset,
	};
	return 0;
}
