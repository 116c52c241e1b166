/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What CRIU has for the plugin: the ABI of plugins, and the functions that it exports
 * (criu is linked with -rdynamic). All of it is the same in CRIU 4.1 to 4.3.
 */
#ifndef CRIU_DETACHED_CRIU_H
#define CRIU_DETACHED_CRIU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PLUGIN_NAME "criu_detached"

/* --- criu/include/criu-plugin.h --- */

enum { STAGE_DUMP, STAGE_PRE_DUMP, STAGE_RESTORE };
enum { HOOK_DUMP_UNIX_SK, HOOK_DUMP_EXT_FILE = 2, HOOK_RESTORE_EXT_FILE = 3, MAX_HOOKS };

struct plugin_descriptor {
	const char *name;
	int (*init)(int stage);
	void (*exit)(int stage, int ret);
	unsigned int version;
	unsigned int max_hooks;
	void *hooks[MAX_HOOKS];
};

/* --- exported functions --- */

/* criu/include/external.h */
struct external {
	void *prev, *next;
	char *id;
	void *data;
};

/* Filled in by resolve_criu. */
struct criu_functions {
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
	int (*irmap_scan_path_add)(char *path); /* NULL: watches are CRIU's alone */
	/* CRIU >= 4.3; tells the ABI of a hook too, see hook_restore_ext_file */
	int (*plugin_get_options)(int *argc, char ***argv);
};
extern struct criu_functions criu;

/**
 * resolve_criu - find CRIU's functions in the main program; done in every init
 *
 * Return: NULL, or the name of the first one that is needed and missing.
 */
const char *resolve_criu(void);

/** mount_known - is it a mount that CRIU dumps? Then its files are CRIU's own business. */
static inline bool mount_known(uint32_t mnt_id)
{
	return criu.lookup_mnt_id(mnt_id) != NULL;
}

#endif
