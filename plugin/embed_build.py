# SPDX-License-Identifier: GPL-2.0-only
"""The cffi-embedded module: it starts Python inside CRIU and holds the entry points."""

from __future__ import annotations

from cffi import FFI

MODULE = "_criu_detached_embed"

# The part of host.h that Python sees; the C compiler checks it against host.h.
HOST_CDEF = """
struct criu_host {
    void (*log)(int level, const char *text);
    int (*image_dir)(void);
    int (*mount_known)(int mnt_id);
    int (*dumps_mount_namespace)(void);
    int (*mntns_root)(int mnt_id);
    int (*need_plugin)(void);
    int (*fdstore_add)(int fd);
    int (*fdstore_get)(int id);
    int (*inherit_fd_add)(int fd, const char *key);
    int (*inherit_fd_get)(const char *key);
    int (*dumps_user_namespace)(void);
    uint32_t (*userns_uid)(uint32_t uid);
    uint32_t (*userns_gid)(uint32_t gid);
    const char *(*plugin_option)(int index);
    int flushes;
    int (*socket_name_add)(uint32_t id, const char *name, int deleted);
    int (*watch_name_add)(uint64_t dev, uint64_t ino, const char *name);
};
struct file_facts {
    uint64_t dev;
    uint64_t ino;
    uint64_t rdev;
    uint64_t size;
    uint32_t mnt_id;
    uint32_t mode;
    uint32_t nlink;
    uint32_t uid;
    uint32_t gid;
    uint32_t attributes;
};
struct socket_answer {
    int stand_in;
    uint32_t place;
    int deleted;
};
const struct criu_host *the_host(void);
"""

# The part of known_files.h that Python sees.
KNOWN_FILES_CDEF = """
int known_mount_add(uint32_t mnt_id, const char *key, int shared, int keeps_inodes);
int known_files_load(const uint8_t *data, size_t size);
int shared_alloc(unsigned int count);
void shared_lock(unsigned int index);
void shared_unlock(unsigned int index);
int shared_get(unsigned int index);
void shared_set(unsigned int index, int value);
"""

# The part of plain_files.h that Python sees.
PLAIN_FILES_CDEF = """
struct plain_file {
    uint64_t ino;
    uint64_t dev;
    uint32_t mnt_id;
    const char *path;
};
int plain_mount_add(uint32_t mnt_id, int root, uint32_t source_mnt_id, int compare_owner);
int plain_file_note(uint32_t mnt_id, uint64_t ino, uint64_t dev, const char *path);
const struct plain_file *plain_file_find(uint32_t mnt_id, uint64_t ino);
const uint8_t *plain_files_pending(size_t *size, unsigned int *entries);
void plain_files_written(void);
"""

ENTRY_POINTS = """
int dump_link(int fd, const char *link, const struct file_facts *facts);
int dump_ext_file(int fd, int id, const struct file_facts *facts);
int dump_thread_file(int fd, const char *link, const struct file_facts *facts,
		     const char *whose);
int dump_bound_socket(int fd, const char *name, const struct file_facts *facts,
                struct socket_answer *answer);
int dump_watches(void);
int dump_deleted_watched(int fd);
int pre_dump_watches(void);
int dump_flush(void);
int restore_init(void);
int restore_open(const char *name, int flags);
int restore_ext_file(int id);
int restore_lead(uint32_t id);
int restore_bound(uint32_t id);
void forget(void);
"""

SOURCE = r"""
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "known_files.h"
#include "plain_files.h"

static const struct criu_host *host; /* the shim's, filled in anew in every init */

/* Written by freeze.py, and by build.py the extension modules that embed.so is linked with. */
FROZEN_MODULES
LINKED_MODULES

/* Written by cffi, below. */
ENTRY_POINT_PROTOTYPES

static const struct criu_host *the_host(void)
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
	return PyConfig_SetString(config, &config->executable, PYTHON_EXECUTABLE);
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
	known_files_reset();
	forget();
}

/* The entry point for every link of a dump. */
static int dump_plain_link(int fd, const char *link, const struct file_facts *facts)
{
	return plain_file_take(link, facts) ? DUMP_EXTERNAL : dump_link(fd, link, facts);
}

/* The entry point for every file of a restore. */
static int open_known(const char *name, int flags)
{
	int fd = known_file_open(name, flags, host);

	return fd >= 0 ? fd : restore_open(name, flags);
}

__attribute__((visibility("default"))) int
criu_detached_start(const struct criu_host *criu, struct embedded *entry)
{
	host = criu;
	if (!Py_IsInitialized() && start_interpreter())
		return -1;
	if (cffi_start_python())
		return complain("the package", "the reason is on stderr; build the plugin again");
	*entry = (struct embedded){
		.dump_link = dump_plain_link,
		.dump_ext_file = dump_ext_file,
		.dump_bound_socket = dump_bound_socket,
		.dump_watches = dump_watches,
		.dump_deleted_watched = dump_deleted_watched,
		.pre_dump_watches = pre_dump_watches,
		.dump_thread_file = dump_thread_file,
		.dump_flush = dump_flush,
		.restore_init = restore_init,
		.restore_open = open_known,
		.restore_ext_file = restore_ext_file,
		.restore_lead = restore_lead,
		.restore_bound = restore_bound,
		.may_keep_fds = known_files_may_keep,
		.settle = known_files_settle,
		.reset = reset,
	};
	return 0;
}
"""


def builder(frozen: str, linked: list[str], executable: str) -> FFI:
    """Describe the embedded module.

    Args:
        frozen: C source of the table of modules (freeze.py).
        linked: names of extension modules that it is linked with.
        executable: the interpreter's path, for messages.

    Returns:
        A cffi builder; ``emit_c_code`` writes the module's C source.
    """
    ffi = FFI()
    ffi.cdef(HOST_CDEF + KNOWN_FILES_CDEF + PLAIN_FILES_CDEF)
    ffi.embedding_api(ENTRY_POINTS)
    source = SOURCE.replace("ENTRY_POINT_PROTOTYPES", ENTRY_POINTS.strip())
    source = source.replace("LINKED_MODULES", _linked_modules(linked))
    source = source.replace("FROZEN_MODULES", frozen)
    ffi.set_source(MODULE, f'#define PYTHON_EXECUTABLE L"{executable}"\n{source}')
    ffi.embedding_init_code("import criu_detached.small_os, criu_detached.entry")
    return ffi


def _linked_modules(names: list[str]) -> str:
    """The table ``linked_modules``: for Python they are built in."""
    functions = {name: f"PyInit_{name.rpartition('.')[2]}" for name in names}
    declared = "".join(f"PyMODINIT_FUNC {function}(void);\n" for function in functions.values())
    entries = "".join(f'\t{{ "{name}", {init} }},\n' for name, init in functions.items())
    return f"{declared}static struct _inittab linked_modules[] = {{\n{entries}\t{{ 0 }},\n}};"
