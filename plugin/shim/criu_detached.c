// SPDX-License-Identifier: GPL-2.0-only
/*
 * The plugin as CRIU sees it: descriptor, hooks, init and exit.
 *
 * This room is all that CRIU itself loads. It links libc alone, notices when CRIU comes upon what
 * may be on a detached mount, hands that to Python (embed/host.h) and answers in CRIU's stead
 * (steer.h): at dump in dump*.c, at restore in restore*.c. No mount is looked at here, no record is
 * written and nothing is decided about a file on a detached mount.
 */
#define _GNU_SOURCE
#include "criu.h"
#include "dump.h"
#include "embedded.h"
#include "restore.h"
#include "steer.h"

static int plugin_init(int stage)
{
	const char *missing = resolve_criu();
	int ret;

	unsteer_main_program(); /* of an earlier stage whose exit was not called */
	host_fill();
	python_reset();
	switch (stage) {
	case STAGE_DUMP:
		ret = init_dump(missing);
		break;
	case STAGE_RESTORE:
		ret = init_restore(missing);
		break;
	default: /* its exit is never called */
		ret = init_pre_dump(missing);
	}
	if (ret)
		unsteer_main_program(); /* CRIU unloads a plugin whose init fails */
	return ret;
}

static void plugin_exit(int stage, int ret)
{
	if (stage == STAGE_DUMP)
		exit_dump(ret);
	else
		exit_restore();
	unsteer_main_program();
}

/*
 * Version 0.2.0 with room for four hooks, of which three are used, loads in CRIU 4.1 to 4.3:
 * CRIU refuses a plugin with a higher version, or with room for more hooks, than it has itself.
 */
__attribute__((visibility("default"))) struct plugin_descriptor CR_PLUGIN_DESC = {
	.name = PLUGIN_NAME,
	.init = plugin_init,
	.exit = plugin_exit,
	.version = 0x000200, /* 0.2.0 */
	.max_hooks = MAX_HOOKS,
	.hooks = {
		[HOOK_DUMP_UNIX_SK] = hook_dump_unix_sk,
		[HOOK_DUMP_EXT_FILE] = hook_dump_ext_file,
		[HOOK_RESTORE_EXT_FILE] = hook_restore_ext_file,
	},
};
