/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a thread has for itself. CRIU dumps the fds, the working directory and the root of
 * the main thread alone, and gives them to all (dump_task_files_seized, criu/files.c, and
 * dump_task_fs, criu/cr-dump.c). A thread made without CLONE_FILES or CLONE_FS may have others.
 * Where these are on a detached mount the dump is refused.
 */
#ifndef CRIU_DETACHED_DUMP_THREADS_H
#define CRIU_DETACHED_DUMP_THREADS_H

/** dump_threads_init - steer getpriority, which CRIU calls once for each thread; 0, or -1 */
int dump_threads_init(void);

#endif
