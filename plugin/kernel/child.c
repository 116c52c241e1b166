// SPDX-License-Identifier: GPL-2.0-only
/* Making children, and waiting for them (child.h says why). */
#define _GNU_SOURCE
#include "child.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

pid_t child_with_copy(unsigned long flags)
{
#if defined(__s390x__) /* clone(2): there the stack comes first */
	return (pid_t)syscall(SYS_clone, 0, flags, 0, 0, 0);
#else
	return (pid_t)syscall(SYS_clone, flags, 0, 0, 0, 0);
#endif
}

int child_await(pid_t pid)
{
	pid_t ended;
	int status;

	do /* a signal that CRIU handles may come in between */
		ended = waitpid(pid, &status, __WALL);
	while (ended < 0 && errno == EINTR);
	return ended == pid && WIFEXITED(status) ? -WEXITSTATUS(status) : -ECHILD;
}

int child_in_own_memory(int (*work)(void *arg), void *arg, int flags)
{
	static char stack[64 << 10] __attribute__((aligned(16)));
	sigset_t all, before;
	pid_t pid;
	int result;

	/* Signals wait too, for a handler would run in the child. */
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &before);
	pid = clone(work, stack + sizeof(stack), CLONE_VM | CLONE_VFORK | flags, arg);
	result = pid < 0 ? -errno : child_await(pid);
	sigprocmask(SIG_SETMASK, &before, NULL);
	return result;
}
