/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Children that do something for this process: what they enter and mount is gone with them,
 * and what they leave is an fd or an answer.
 *
 * They send no SIGCHLD when they end: CRIU's handler of that signal takes every child that
 * ends for a task that was lost (sigchld_handler, criu/parasite-syscall.c).
 */
#ifndef CRIU_DETACHED_CHILD_H
#define CRIU_DETACHED_CHILD_H

#include <stdint.h>
#include <sys/types.h>

/**
 * child_in_own_memory - a child that works in the memory of this process, which waits for it
 * @work: what it does; returns 0 or an errno
 * @arg: for @work, which may leave answers there
 * @flags: CLONE_FILES, if the fds that it opens are for this process; CLONE_NEWNS
 *
 * As vfork(2) has it: to copy the memory of a process with a Python in it would take longer
 * than the work. It may enter no user namespace: who has rights over processes there would have
 * them over this memory.
 *
 * Return: 0 or -errno.
 */
int child_in_own_memory(int (*work)(void *arg), void *arg, int flags);

/**
 * child_with_copy - a child with a copy of the memory, as fork(2) has it
 * @flags: of clone(2)
 *
 * Return: 0 in the child, else its pid; -1 with errno set.
 */
pid_t child_with_copy(unsigned long flags);

/**
 * child_that_may_hang - a child with a copy of the memory, for what may never return
 * @kept: an fd; all others are closed in the child, and stdin, stdout and stderr are /dev/null; -1:
 * none is kept
 *
 * Whoever waits for the end of what this process has open does not wait for such a child. It ends
 * with this process.
 *
 * Return: as child_with_copy.
 */
pid_t child_that_may_hang(int kept);

/** child_give_up - kill it; it may hang on, and does nothing any more */
void child_give_up(pid_t pid);

/**
 * child_with_patience - do something in a child that may hang
 * @work: what it does; returns 0 or an errno
 * @arg: for @work, which may leave answers in memory that is shared (MAP_SHARED)
 * @beats: shared too; @work counts it up, so as to show that it does not hang
 * @patience: tenths of a second without that, after which it is given up
 *
 * Signals come in meanwhile, and may end this process.
 *
 * Return: 0 or -errno; -ETIMEDOUT: it hangs.
 */
int child_with_patience(int (*work)(void *arg), void *arg, const uint64_t *beats,
			unsigned int patience);

/** child_await - wait for its end: its exit status as -errno; -ECHILD: it was killed */
int child_await(pid_t pid);

#endif
