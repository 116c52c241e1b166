// SPDX-License-Identifier: GPL-2.0-only
/* Finds CRIU's functions in the main program. Which are used, and how: criu.h. */
#define _GNU_SOURCE
#include "criu.h"

#include <dlfcn.h>
#include <string.h>

struct criu_functions criu;

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

const char *resolve_criu(void)
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
