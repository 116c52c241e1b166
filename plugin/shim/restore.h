/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A restore: what the plugin does from CRIU's init on. The init is in CRIU's process, before
 * any task exists; the steered calls and the hook are in the tasks, in many at once.
 */
#ifndef CRIU_DETACHED_RESTORE_H
#define CRIU_DETACHED_RESTORE_H

#include <stdbool.h>

/**
 * init_restore - steer what a restore calls and realise mounts, if the images need the plugin
 * @missing: a function that this CRIU lacks, or NULL
 *
 * Return: 0, or -1 with the reason in the log.
 */
int init_restore(const char *missing);

/**
 * hook_restore_ext_file - the hook RESTORE_EXT_FILE; -ENOTSUP: not ours
 *
 * CRIU <= 4.2 calls this with (id), CRIU 4.3 with (id, &retry_needed), and leaves
 * *retry_needed uninitialised. Before 4.3 the second argument is a stray register.
 */
int hook_restore_ext_file(int id, bool *retry_needed);

/** exit_restore - nothing is restored any more */
void exit_restore(void);

#endif
