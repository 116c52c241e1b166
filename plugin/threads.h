/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a thread has for itself. CRIU dumps the fds, the working directory and the root of
 * the main thread alone, and gives them to all (dump_task_files_seized and dump_task_fs,
 * criu/cr-dump.c). A thread made without CLONE_FILES or CLONE_FS may have others.
 */
#ifndef CRIU_DETACHED_THREADS_H
#define CRIU_DETACHED_THREADS_H

#include <sys/types.h>

/** threads_reset - forget the last dump; done in every init */
void threads_reset(void);

/**
 * thread_own_files - show what a stopped thread has that its main thread has not
 * @tid: the thread; a process's main thread comes before its others
 * @show: is given each such file as an O_PATH fd, and what it is to the thread; the first
 *        non-zero that it returns is the last
 *
 * Return: what @show returned, or 0.
 */
int thread_own_files(pid_t tid, int (*show)(int fd, pid_t leader, pid_t tid, const char *what));

#endif
