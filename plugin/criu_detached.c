// SPDX-License-Identifier: GPL-2.0-only
/*
 * The plugin as CRIU sees it: descriptor, hooks, and the steering of files on mounts
 * that CRIU does not know to the embedded Python. Policy lives in the Python package.
 *
 * dump:    readlink of /proc/self/fd/N -> on a mount that CRIU knows? -> Python
 *          records the file -> the file's external key is set -> CRIU writes an
 *          external regular file by itself (dump_one_reg_file, criu/files-reg.c)
 * restore: openat of "ile[<mnt_id>:<inode>]" -> Python opens the file on its mount
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/sockios.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "host.h"
#include "sockets.h"
#include "steer.h"
#include "threads.h"
#include "watches.h"

#define PLUGIN_NAME "criu_detached"
#define RECORD_FILE "criu-detached.img"
#define DATA_FILE "criu-detached-data.img"
#define EXPORT __attribute__((visibility("default")))

/* --- CRIU's plugin ABI (criu/include/criu-plugin.h) --- */

enum { STAGE_DUMP, STAGE_PRE_DUMP, STAGE_RESTORE };
enum { HOOK_DUMP_EXT_FILE = 2, HOOK_RESTORE_EXT_FILE = 3, MAX_HOOKS };

/*
 * Version 0.2.0 with these four hooks loads in CRIU 4.1 to 4.3: CRIU refuses a
 * plugin with a higher version, or with more hooks, than it has itself.
 */
struct plugin_descriptor {
	const char *name;
	int (*init)(int stage);
	void (*exit)(int stage, int ret);
	unsigned int version;
	unsigned int max_hooks;
	void *hooks[MAX_HOOKS];
};

/* struct external of criu/include/external.h, the same in CRIU 4.1 to 4.3. */
struct external {
	void *prev, *next;
	char *id;
	void *data;
};

/* --- CRIU's functions, resolved in every init --- */

static struct {
	int (*get_image_dir)(void);
	void (*print_on_level)(unsigned int level, const char *format, ...);
	void *(*lookup_mnt_id)(unsigned int mnt_id);
	int (*add_external)(char *key);
	int (*external_for_each_type)(char *type, int (*cb)(struct external *, void *), void *arg);
	int (*add_inventory_plugin)(const char *name);
	bool (*check_and_remove_inventory_plugin)(const char *name, size_t n);
	int (*fdstore_add)(int fd);
	int (*fdstore_get)(int id);
	int (*inherit_fd_add)(int fd, char *key);
	int (*inherit_fd_lookup_id)(char *key);
	int (*mntns_get_root_by_mnt_id)(int mnt_id);
	unsigned long *root_ns_mask;
	uid_t (*userns_uid)(uid_t uid);
	gid_t (*userns_gid)(gid_t gid);
	int (*irmap_scan_path_add)(char *path);
	/* CRIU >= 4.3; tells the hook's ABI too, see restore_ext_file */
	int (*plugin_get_options)(int *argc, char ***argv);
} criu;

static const struct {
	const char *name;
	void *where;
	bool optional;
} criu_symbols[] = {
	{ "criu_get_image_dir", &criu.get_image_dir, false },
	{ "print_on_level", &criu.print_on_level, false },
	{ "lookup_mnt_id", &criu.lookup_mnt_id, false },
	{ "add_external", &criu.add_external, false },
	{ "external_for_each_type", &criu.external_for_each_type, false },
	{ "add_inventory_plugin", &criu.add_inventory_plugin, false },
	{ "check_and_remove_inventory_plugin", &criu.check_and_remove_inventory_plugin, false },
	{ "fdstore_add", &criu.fdstore_add, false },
	{ "fdstore_get", &criu.fdstore_get, false },
	{ "inherit_fd_add", &criu.inherit_fd_add, false },
	{ "inherit_fd_lookup_id", &criu.inherit_fd_lookup_id, false },
	{ "mntns_get_root_by_mnt_id", &criu.mntns_get_root_by_mnt_id, false },
	{ "root_ns_mask", &criu.root_ns_mask, false },
	{ "userns_uid", &criu.userns_uid, false },
	{ "userns_gid", &criu.userns_gid, false },
	{ "irmap_scan_path_add", &criu.irmap_scan_path_add, true },
	{ "criu_plugin_get_options", &criu.plugin_get_options, true },
};

/* NULL, or the name of the first function that this CRIU lacks. */
static const char *resolve_criu(void)
{
	void *program = dlopen(NULL, RTLD_LAZY);
	const char *missing = NULL;

	memset(&criu, 0, sizeof(criu));
	for (size_t i = 0; i < sizeof(criu_symbols) / sizeof(criu_symbols[0]); i++) {
		void *sym = dlsym(program, criu_symbols[i].name);

		memcpy(criu_symbols[i].where, &sym, sizeof(sym));
		if (!sym && !criu_symbols[i].optional && !missing)
			missing = criu_symbols[i].name;
	}
	dlclose(program);
	return missing;
}

static const char *const level_prefix[] = { "", "Error ", "Warn  ", "", "" };

static void __attribute__((format(printf, 2, 3))) say(int level, const char *format, ...)
{
	char text[4096];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	if (criu.print_on_level)
		criu.print_on_level(level, "%s%s: %s\n", level_prefix[level], "criu-detached",
				    text);
	else
		fprintf(stderr, "%scriu-detached: %s\n", level_prefix[level], text);
}

/* A name of the dumped system for a message, as errors.quote has it: one line, and not long. */
static const char *quoted(const char *name)
{
	static char text[1024];
	size_t at = 0;

	for (; *name && at < sizeof(text) - 8; name++) {
		unsigned char c = *name;

		if (c < ' ' || c > '~' || c == '\\')
			at += sprintf(text + at, "\\x%02x", c);
		else
			text[at++] = c;
	}
	strcpy(text + at, *name ? "..." : "");
	return text;
}

/* --- what Python may ask of CRIU --- */

static void host_log(int level, const char *text)
{
	say(level, "%s", text);
}

static int host_mount_known(int mnt_id)
{
	return criu.lookup_mnt_id(mnt_id) != NULL;
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

static struct criu_host host;

static void fill_host(void)
{
	host = (struct criu_host){
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
		.watch_name_add = host_watch_name_add,
	};
}

/* --- the embedded Python, opened on need --- */

static struct embedded python;
static bool python_started;

/* <plugin dir>/criu_detached/embed.so, beside this very file. */
static int embedded_path(char *path, size_t size)
{
	char self[PATH_MAX];
	Dl_info info;
	char *slash;

	if (!dladdr(&python, &info) || !info.dli_fname || !realpath(info.dli_fname, self))
		return -1;
	slash = strrchr(self, '/');
	if (!slash)
		return -1;
	*slash = '\0';
	return snprintf(path, size, "%s/" PLUGIN_NAME "/embed.so", self) < (int)size ? 0 : -1;
}

static int start_python(void)
{
	criu_detached_start_t *start;
	char path[PATH_MAX];
	void *module;
	static bool failed;

	if (python_started)
		return 0;
	if (failed)
		return -1; /* the log has the reason already */
	failed = true;
	if (embedded_path(path, sizeof(path))) {
		say(LOG_ERROR, "can't tell where the plugin was loaded from; install it again");
		return -1;
	}
	module = dlopen(path, RTLD_NOW | RTLD_NODELETE);
	if (!module) {
		say(LOG_ERROR, "can't load the plugin's Python part (%s); build it again",
		    dlerror());
		return -1;
	}
	start = (criu_detached_start_t *)dlsym(module, "criu_detached_start");
	if (!start) {
		say(LOG_ERROR, "%s is of another version of the plugin; build it again", path);
		return -1;
	}
	if (start(&host, &python))
		return -1;
	python_started = true;
	failed = false;
	return 0;
}

/* --- dump --- */

/* The one live external key. CRIU's list keeps a pointer to this buffer. */
static char live_key[64];

static int adopt_key(struct external *ext, void *arg)
{
	if (strcmp(ext->id, arg))
		return 0;
	ext->id = live_key;
	return 1;
}

static int same_key(struct external *ext, void *arg)
{
	return ext->id != live_key && !strcmp(ext->id, arg);
}

static void format_key(char *key, size_t size, const struct file_facts *facts)
{
	snprintf(key, size, "file[%x:%" PRIx64 "]", facts->mnt_id, facts->ino);
}

/*
 * Every file walks CRIU's list of external keys, so ours has one entry only, and its
 * id is rewritten: the look-up follows right after the link is read.
 */
static int set_live_key(const struct file_facts *facts)
{
	static char placeholder[] = "file[" PLUGIN_NAME "]";

	if (!live_key[0]) {
		if (criu.add_external(placeholder) ||
		    !criu.external_for_each_type("file", adopt_key, placeholder)) {
			say(LOG_ERROR, "CRIU did not take an external file key");
			return -1;
		}
	}
	format_key(live_key, sizeof(live_key), facts);
	return 0;
}

static int is_foreign(struct external *ext, void *arg)
{
	(void)arg;
	return ext->id != live_key;
}

/* A key that the user gave wins. Most users give none, so most files need no text compare. */
static bool user_gave_key(const struct file_facts *facts)
{
	char key[sizeof(live_key)];

	if (!criu.external_for_each_type("file", is_foreign, NULL))
		return false;
	format_key(key, sizeof(key), facts);
	return criu.external_for_each_type("file", same_key, key) != 0;
}

static int get_facts(int fd, struct file_facts *facts)
{
	struct statx stx;

	if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_MNT_ID, &stx))
		return -1;
	if (!(stx.stx_mask & STATX_MNT_ID)) {
		errno = EOPNOTSUPP; /* Linux < 5.8 */
		return -1;
	}
	*facts = (struct file_facts){
		.dev = makedev(stx.stx_dev_major, stx.stx_dev_minor),
		.ino = stx.stx_ino,
		.rdev = makedev(stx.stx_rdev_major, stx.stx_rdev_minor),
		.size = S_ISREG(stx.stx_mode) ? stx.stx_size : 0,
		.mnt_id = stx.stx_mnt_id,
		.mode = stx.stx_mode,
		.nlink = stx.stx_nlink,
		.uid = stx.stx_uid,
		.gid = stx.stx_gid,
	};
	return 0;
}

/*
 * memfd, SysV shm and shared anonymous memory live on the kernel's own tmpfs mount and
 * have links that start with '/'. Knowing its device keeps Python out of such dumps.
 */
static bool on_kernel_shmem(const struct file_facts *facts)
{
	static dev_t shmem_dev;
	struct stat st;
	int fd;

	if (!shmem_dev) {
		fd = memfd_create(PLUGIN_NAME, MFD_CLOEXEC);
		if (fd < 0)
			return false;
		if (!fstat(fd, &st))
			shmem_dev = st.st_dev;
		close(fd);
	}
	return facts->dev == shmem_dev;
}

static int dump_link(int fd, const char *link)
{
	struct file_facts facts;
	bool known;

	if (get_facts(fd, &facts))
		return DUMP_LEAVE;
	known = criu.lookup_mnt_id(facts.mnt_id) != NULL;
	/* A file of an attached mount that is named like a key would be taken for one of ours. */
	if (known && !strncmp(link, "/ile[", 5)) {
		say(LOG_ERROR, "the file %s has the form of an external file key: rename it",
		    quoted(link));
		return DUMP_REFUSE;
	}
	if (known || on_kernel_shmem(&facts) || user_gave_key(&facts))
		return DUMP_LEAVE;
	/*
	 * Without Python, CRIU itself refuses what is detached, and dumps what is not. But a
	 * socket's path it would restore on another mount.
	 */
	if (start_python())
		return S_ISSOCK(facts.mode) ? DUMP_REFUSE : DUMP_LEAVE;

	int answer = python.dump_link(fd, link, &facts);

	if (answer == DUMP_EXTERNAL)
		return set_live_key(&facts) ? DUMP_REFUSE : DUMP_EXTERNAL;
	return answer == DUMP_LEAVE ? DUMP_LEAVE : DUMP_REFUSE;
}

/* read_fd_link (criu/util.c) is the only reader of such paths. */
static bool is_fd_path(const char *path, int *fd)
{
	static const char prefix[] = "/proc/self/fd/";
	char *end;
	long n;

	if (strncmp(path, prefix, sizeof(prefix) - 1))
		return false;
	n = strtol(path + sizeof(prefix) - 1, &end, 10);
	if (*end || end == path + sizeof(prefix) - 1 || n < 0 || n > INT_MAX)
		return false;
	*fd = (int)n;
	return true;
}

static ssize_t steered_readlink(const char *path, char *buf, size_t size)
{
	ssize_t len = readlink(path, buf, size);
	int saved_errno = errno;
	char link[PATH_MAX];
	const char *other;
	int fd;

	/* Links that fill the buffer are an error to CRIU; those without '/' are no paths. */
	if (len <= 0 || (size_t)len >= size || len >= PATH_MAX || buf[0] != '/' ||
	    !is_fd_path(path, &fd))
		return len;
	other = socket_stand_in_link(fd);
	if (other) {
		len = strnlen(other, size);
		memcpy(buf, other, len);
		return len;
	}
	memcpy(link, buf, len);
	link[len] = '\0';
	if (dump_link(fd, link) == DUMP_REFUSE) {
		errno = EIO;
		return -1;
	}
	errno = saved_errno;
	return len;
}

static ssize_t steered_readlink_chk(const char *path, char *buf, size_t size, size_t bufsize)
{
	if (size > bufsize)
		abort(); /* what __readlink_chk does */
	return steered_readlink(path, buf, size);
}

/* A socket's file (O_PATH): the fd that CRIU is given, or -1. */
static int dump_socket_file(int sk, int fd)
{
	struct socket_answer answer = { .stand_in = -1 };
	char name[SOCKET_NAME_SIZE];
	struct file_facts facts;
	int id = 0;

	if (!socket_name_of(sk, name) || get_facts(fd, &facts))
		return fd;
	answer.deleted = facts.nlink == 0;
	if (!criu.lookup_mnt_id(facts.mnt_id))
		id = start_python() ? -1 : python.dump_bound_socket(fd, name, &facts, &answer);
	if (id < 0)
		return -1;
	switch (socket_name_note(name, answer.place, answer.deleted)) {
	case SOCKET_CONFLICT:
		say(LOG_ERROR,
		    "can't dump a unix socket at %s: by its name it is mixed up with another one,"
		    " and one of them is on a detached mount: close one before the dump",
		    quoted(name));
		return -1;
	case SOCKET_NO_MEMORY:
		say(LOG_ERROR, "no memory for the names of unix sockets");
		return -1;
	case SOCKET_NOTED:
		break;
	}
	return id ? socket_stand_in(fd, answer.stand_in, id, name, answer.deleted) : fd;
}

/* unix_resolve_name (criu/sk-unix.c): here both the socket and its file are at hand. */
static int steered_ioctl(int fd, unsigned long request, ...)
{
	va_list args;
	void *arg;
	int ret, file;

	va_start(args, request);
	arg = va_arg(args, void *);
	va_end(args);
	ret = ioctl(fd, request, arg);
	if (request != SIOCUNIXFILE_ || ret < 0)
		return ret;
	file = dump_socket_file(fd, ret);
	if (file < 0) {
		close(ret);
		errno = EIO;
	}
	return file;
}

static int steered_fstat(int fd, struct stat *st)
{
	return socket_stand_in_stat(fd, st) ? 0 : fstat(fd, st);
}

static bool pre_dumping;

static void find_watched(void)
{
	if (!start_python())
		pre_dumping ? python.pre_dump_watches() : python.dump_watches();
}

/* What is not found and why is in the log; CRIU then fails by itself. */
static int steered_fstatat(int dirfd, const char *path, struct stat *st, int flags)
{
	if (!strcmp(path, WATCH_SEARCH + 1)) {
		find_watched();
		errno = ENOENT;
		return -1;
	}
	return watch_name_stat(path, st) ? 0 : fstatat(dirfd, path, st, flags);
}

/* A deleted file that is watched, as its handle led to it on a mount that CRIU knows. */
static bool is_our_ghost(int fd)
{
	struct file_facts facts;

	return !get_facts(fd, &facts) && !facts.nlink && !start_python() &&
	       python.dump_deleted_watched(fd) > 0;
}

/*
 * CRIU opens watched files by their handles (open_by_handle, criu/fsnotify.c), and knows no
 * deleted ones but its own ghosts. Where that fails it searches: see steered_fstatat.
 */
static long steered_syscall(long number, ...)
{
	long ret, arg[6];
	va_list args;

	va_start(args, number);
	for (int i = 0; i < 6; i++)
		arg[i] = va_arg(args, long);
	va_end(args);
	ret = syscall(number, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]);
	if (number == SYS_open_by_handle_at && ret >= 0 && is_our_ghost((int)ret)) {
		close((int)ret);
		errno = ESTALE;
		return -1;
	}
	return ret;
}

/* A file that a thread has for itself: CRIU would lose it, and where, Python says. */
static int dump_thread_file(int fd, pid_t leader, pid_t tid, const char *what)
{
	char path[64], link[PATH_MAX], whose[128];
	struct file_facts facts;
	ssize_t len;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	len = readlink(path, link, sizeof(link) - 1);
	if (len <= 0 || *link != '/' || get_facts(fd, &facts))
		return 0;
	link[len] = '\0';
	if (criu.lookup_mnt_id(facts.mnt_id) || on_kernel_shmem(&facts) || start_python())
		return 0;
	snprintf(whose, sizeof(whose), "%s of thread %d of process %d", what, tid, leader);
	return python.dump_thread_file(fd, link, &facts, whose);
}

/* dump_sched_info (criu/cr-dump.c): called once for each thread, the main one first. */
static int steered_getpriority(__priority_which_t which, id_t who)
{
	if (which == PRIO_PROCESS && thread_own_files(who, dump_thread_file)) {
		errno = EIO;
		return -1;
	}
	return getpriority(which, who);
}

/* Only then openat(2) has a fourth argument; O_TMPFILE shares a bit with O_DIRECTORY. */
static bool needs_mode(int flags)
{
	return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE;
}

/*
 * The inventory is the last image of a dump, written while the tasks are still frozen
 * (write_img_inventory, cr_dump_tasks): the last moment at which a dump can fail.
 */
static int steered_dump_openat(int dirfd, const char *path, int flags, ...)
{
	va_list args;
	mode_t mode;

	va_start(args, flags);
	mode = needs_mode(flags) ? va_arg(args, mode_t) : 0;
	va_end(args);
	if (python_started && flags & O_CREAT && !strcmp(path, "inventory.img") &&
	    python.dump_flush()) {
		errno = EIO;
		return -1;
	}
	return openat(dirfd, path, flags, mode);
}

static const struct steering flush_steering[] = {
	{ "openat", steered_dump_openat },
	{ "openat64", steered_dump_openat },
};

static const struct steering file_steering[] = {
	{ "fstat", steered_fstat },
	{ "fstat64", steered_fstat },
};

static const struct steering ioctl_steering[] = {
	{ "ioctl", steered_ioctl },
};

static const struct steering watch_steering[] = {
	{ "fstatat", steered_fstatat },
	{ "fstatat64", steered_fstatat },
};

static const struct steering handle_steering[] = {
	{ "syscall", steered_syscall },
};

static const struct steering thread_steering[] = {
	{ "getpriority", steered_getpriority },
};

static const struct steering dump_steering[] = {
	{ "readlink", steered_readlink },
	{ "__readlink_chk", steered_readlink_chk },
};

static bool ready;

static bool is_fs_context(int fd)
{
	static const char wanted[] = "anon_inode:[fscontext]";
	char path[64], link[sizeof(wanted)];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return readlink(path, link, sizeof(link)) == sizeof(wanted) - 1 &&
	       !memcmp(link, wanted, sizeof(wanted) - 1);
}

static int dump_ext_file(int fd, int id)
{
	struct file_facts facts;

	if (!ready || get_facts(fd, &facts) || criu.lookup_mnt_id(facts.mnt_id))
		return -ENOTSUP;
	if (is_fs_context(fd)) {
		say(LOG_ERROR, "can't dump a filesystem context (fsopen, fspick), which the kernel"
			       " does not show: make the mount of it, or close it");
		return -1;
	}
	/* Sockets, anonymous inodes and the like are on no mount that could be detached. */
	if (!S_ISBLK(facts.mode) && !S_ISCHR(facts.mode))
		return -ENOTSUP;
	return start_python() ? -ENOTSUP : python.dump_ext_file(fd, id, &facts);
}

/* --- restore --- */

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

/*
 * restore_fs (criu/cr-restore.c) opens the task's root and working directory, its very
 * last files, and changes to each: after that no tree fd is needed.
 */
static int steered_fchdir(int fd)
{
	python.settle();
	socket_view_leave();
	return fchdir(fd);
}

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

static const struct steering restore_steering[] = {
	{ "openat", steered_openat },
	{ "openat64", steered_openat },
	{ "__openat_2", steered_openat_2 },
	{ "__openat64_2", steered_openat_2 },
};

static const struct steering settle_steering[] = {
	{ "fchdir", steered_fchdir },
};

/*
 * CRIU <= 4.2 calls this with (id), CRIU 4.3 with (id, &retry_needed), and leaves
 * *retry_needed uninitialised. Before 4.3 the second argument is a stray register.
 */
static int restore_ext_file(int id, bool *retry_needed)
{
	int ret;

	if (!ready)
		return -ENOTSUP;
	ret = python.restore_ext_file(id);
	if (ret != -ENOTSUP && criu.plugin_get_options)
		*retry_needed = false;
	return ret;
}

/* --- life of the plugin --- */

#define STEER(table) steer_main_program(table, sizeof(table) / sizeof((table)[0]))

/* Records of an earlier dump into this directory must not outlive it. */
static int remove_stale(const char *name)
{
	if (!unlinkat(criu.get_image_dir(), name, 0) || errno == ENOENT)
		return 0;
	say(LOG_ERROR, "can't remove the stale %s: %s", name, strerror(errno));
	return -1;
}

/* Without it, CRIU refuses watches of what is on no mount that it knows. */
static void steer_watches(bool in_pre_dump)
{
	char path[] = WATCH_SEARCH;

	pre_dumping = in_pre_dump;
	if (!criu.irmap_scan_path_add || STEER(watch_steering) <= 0)
		return;
	criu.irmap_scan_path_add(path);
	if (!in_pre_dump)
		STEER(handle_steering);
}

/* A plugin installed for the whole machine must not stop the dumps that do not need it. */
static int dump_init(const char *missing)
{
	if (missing) {
		say(LOG_WARN, "this CRIU has no function %s: going on without the plugin", missing);
		return 0;
	}
	if (remove_stale(RECORD_FILE) || remove_stale(DATA_FILE))
		return -1;
	if (STEER(dump_steering) <= 0) {
		say(LOG_WARN, "this CRIU does not import readlink: going on without the plugin");
		return 0;
	}
	host.flushes = STEER(flush_steering) > 0;
	STEER(thread_steering);
	/* Without it, CRIU reads the link of a socket's file, and Python refuses that. */
	if (STEER(file_steering) > 0)
		STEER(ioctl_steering);
	steer_watches(false);
	ready = true;
	say(LOG_DEBUG, "ready to dump");
	return 0;
}

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

static int steer_sockets(bool steers_fchdir)
{
	const char *missing = steers_fchdir ? NULL : "fchdir";

	for (size_t i = 0; !missing && i < nr_socket_steering; i++)
		if (steer_main_program(&socket_steering[i], 1) <= 0)
			missing = socket_steering[i].name;
	if (missing)
		say(LOG_ERROR,
		    "the images have unix sockets on detached mounts, but this CRIU"
		    " does not import %s",
		    missing);
	sockets_expect(python.restore_lead, python.restore_bound);
	return missing ? -1 : 0;
}

static int restore_init(const char *missing)
{
	bool settles;

	if (!criu.check_and_remove_inventory_plugin) {
		say(LOG_WARN, "this CRIU has no plugin inventory: going on without the plugin");
		return 0;
	}
	if (!images_need_plugin())
		return 0;
	if (missing) {
		say(LOG_ERROR, "the images need the plugin, but this CRIU has no function %s",
		    missing);
		return -1;
	}
	if (STEER(restore_steering) <= 0) {
		say(LOG_ERROR, "the images need the plugin, but this CRIU does not import openat");
		return -1;
	}
	if (start_python() || python.restore_init()) {
		unsteer_main_program(); /* CRIU unloads a plugin whose init fails */
		return -1;
	}
	STEER(terminal_steering);
	settles = STEER(settle_steering) > 0;
	python.may_keep_fds(settles);
	if (sockets_recorded() && steer_sockets(settles)) {
		unsteer_main_program();
		return -1;
	}
	ready = true;
	return 0;
}

static int plugin_init(int stage)
{
	const char *missing = resolve_criu();

	unsteer_main_program(); /* of an earlier stage whose exit was not called */

	ready = false;
	live_key[0] = '\0';
	sockets_reset();
	watches_reset();
	threads_reset();
	fill_host();
	if (python_started)
		python.reset();
	switch (stage) {
	case STAGE_DUMP:
		return dump_init(missing);
	case STAGE_RESTORE:
		return restore_init(missing);
	default: /* a pre-dump writes memory, looks for watched files, and never calls exit */
		if (!missing)
			steer_watches(true);
		return 0;
	}
}

static void plugin_exit(int stage, int ret)
{
	/* Nothing should be left to write here, where it is too late to fail. */
	if (stage == STAGE_DUMP && !ret && ready && python_started)
		python.dump_flush();
	unsteer_main_program();
	ready = false;
}

EXPORT struct plugin_descriptor CR_PLUGIN_DESC = {
	.name = PLUGIN_NAME,
	.init = plugin_init,
	.exit = plugin_exit,
	.version = 0x000200, /* 0.2.0 */
	.max_hooks = MAX_HOOKS,
	.hooks = {
		[HOOK_DUMP_EXT_FILE] = dump_ext_file,
		[HOOK_RESTORE_EXT_FILE] = restore_ext_file,
	},
};
