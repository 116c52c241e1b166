/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The contract between shim and Python: what each asks of the other, and nothing of how it is done.
 *
 * The shim (criu_detached.so) is loaded by CRIU and links no Python. It opens embed.so on need,
 * where entry.c fills in what it may call. embed_build.py gives these declarations to cffi.
 */
#ifndef CRIU_DETACHED_HOST_H
#define CRIU_DETACHED_HOST_H

#include "kernel/facts.h"

/*
 * What the two sides were built of (build.py). It is the first word of both structures: what
 * follows may be another in another build, so neither side reads on if this is not its own.
 */
#ifndef BUILD_ID
#define BUILD_ID 0 /* not built: compiled by a linter */
#endif

/* CRIU's functions, resolved in the main program (criu/ of CRIU 4.1 to 4.3). */
struct criu_host {
	uint64_t build;
	void (*log)(int level, const char *text);
	int (*image_dir)(void);		    /* criu_get_image_dir: not ours to close */
	int (*mount_known)(int mnt_id);	    /* lookup_mnt_id() != NULL */
	int (*dumps_mount_namespace)(void); /* root_ns_mask & CLONE_NEWNS */
	int (*mntns_root)(int mnt_id);	    /* mntns_get_root_by_mnt_id: not ours to close */
	int (*need_plugin)(void);	    /* add_inventory_plugin(our name) */
	int (*fdstore_add)(int fd);	    /* its id, or -1 */
	int (*fdstore_get)(int id);	    /* a new fd, or -1 */
	int (*inherit_fd_add)(int fd, const char *key); /* CRIU owns fd afterwards */
	int (*inherit_fd_get)(const char *key);		/* a new fd, or -1 */
	int (*dumps_user_namespace)(void);		/* root_ns_mask & CLONE_NEWUSER */
	uint32_t (*userns_uid)(uint32_t uid);		/* as the dumped user namespace has it */
	uint32_t (*userns_gid)(uint32_t gid);
	const char *(*plugin_option)(int index); /* "--NAME=VALUE" for any plugin, or NULL */
	int flushes; /* dump_flush will be called before the dump ends */
	int (*socket_name_add)(uint32_t id, const char *name, int deleted); /* socket_names.h */
	const struct file_facts *(*deleted_files_left)(size_t *count);	    /* dump_deleted.h */
	/* watch_names.h; from then on CRIU finds the inode under that name */
	int (*watch_name_add)(uint64_t dev, uint64_t ino, const char *name);
};

/* What Python says of the file of a bound unix socket. */
struct socket_answer {
	int stand_in;	/* fd of something that CRIU can dump, the caller's; -1: no need */
	uint32_t place; /* the directory that the file is in */
	int deleted;	/* its name is no longer there */
};

enum dump_answer {
	DUMP_REFUSE = -1,  /* the reason is in the log: fail the dump */
	DUMP_LEAVE = 0,	   /* not ours: as if the plugin were not there */
	DUMP_EXTERNAL = 1, /* recorded: CRIU shall write an external file */
};

/* The embedded module's entry points, all implemented in criu_detached/entry.py. */
struct embedded {
	uint64_t build;
	int (*dump_link)(int fd, const char *link, const struct file_facts *facts);
	int (*dump_ext_file)(int fd, int id, const struct file_facts *facts);
	/* the record's id, 0 when the file is CRIU's business, or -1 */
	int (*dump_bound_socket)(int fd, const char *name, const struct file_facts *facts,
				 struct socket_answer *answer);
	/* a socket outside of the dump that one is connected to: -ENOTSUP, or -1 */
	int (*dump_peer)(const char *name);
	int (*dump_watches)(void); /* CRIU has found a watched inode on no mount */
	/* 1 when a deleted file is watched that will be recreated, 0, or -1 */
	int (*dump_deleted_watched)(int fd);
	int (*pre_dump_watches)(void);
	/* DUMP_REFUSE when a file that a thread has for itself is on a detached mount */
	int (*dump_thread_file)(int fd, const char *link, const struct file_facts *facts,
				const char *whose);
	int (*dump_flush)(void);
	int (*restore_init)(void);
	int (*restore_open)(const char *name, int flags);
	int (*restore_ext_file)(int id);
	/* make the name of a socket's record lead to its mount, by changing this task's root
	   and working directory; 0, or -1 */
	int (*enter_socket_dir)(uint32_t id);
	/* a socket was bound to it, and all is done that is to be done there; 0, or -1 */
	int (*restore_bound)(uint32_t id);
	void (*may_keep_fds)(bool allowed); /* known_files_may_keep */
	void (*drop_cached_fds)(void);	    /* known_files_drop_cached_fds */
	void (*reset)(void);		    /* forget an earlier dump or restore of this process */
};

/*
 * The only symbol that the shim looks up in the embedded module, criu_detached_start_python: start
 * Python in isolation and fill in the entry points. 0, or -1 with the reason in the log. Where the
 * shim is of another build it fills in no more than its own, and says nothing.
 */
typedef int criu_detached_start_python_t(const struct criu_host *host, struct embedded *entry);

/* Levels of the log, as CRIU numbers them (criu/include/criu-log.h). */
#define LOG_ERROR 1
#define LOG_WARN 2
#define LOG_INFO 3
#define LOG_DEBUG 4

#endif
