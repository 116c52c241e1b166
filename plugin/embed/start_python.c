// SPDX-License-Identifier: GPL-2.0-only
/* Python's start inside CRIU, and why it runs on in the tasks. What it is asked: entry.c. */
#include <Python.h>

#include "embed.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

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

int start_interpreter(void)
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
		return cannot_start(status.func, status.err_msg);
	/* A short life without cycles: collections would only walk the modules and records. */
	PyGC_Disable();
	/* cffi's entry points take the lock themselves. */
	PyEval_SaveThread();
	return 0;
}
