/* SPDX-License-Identifier: GPL-2.0-only */
/* A dump: what the plugin does from CRIU's init to its exit. All of it is in CRIU's process. */
#ifndef CRIU_DETACHED_DUMP_H
#define CRIU_DETACHED_DUMP_H

/**
 * init_dump - steer what a dump calls
 * @missing: a function that this CRIU lacks, or NULL
 *
 * A plugin installed for the whole machine must not stop the dumps that do not need it: where
 * steering is not possible the dump goes on without it, with a warning.
 *
 * Return: 0, or -1 with the reason in the log.
 */
int init_dump(const char *missing);

/** init_pre_dump - steer what a pre-dump calls; it writes memory and looks for watched files */
int init_pre_dump(const char *missing);

/** hook_dump_ext_file - the hook DUMP_EXT_FILE; -ENOTSUP: not ours */
int hook_dump_ext_file(int fd, int id);

/**
 * hook_dump_unix_sk - the hook DUMP_UNIX_SK, of a socket whose peer is not dumped; -ENOTSUP: go on
 */
int hook_dump_unix_sk(int fd, int ino);

/**
 * exit_dump - write what was not yet written, when the dump succeeded
 * @ret: of the dump
 */
void exit_dump(int ret);

#endif
