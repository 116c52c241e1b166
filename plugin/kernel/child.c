// SPDX-License-Identifier: GPL-2.0-only
/* Making children, and waiting for them (child.h says why). */
#define _GNU_SOURCE
#include "child.h"

#include "walk.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "syscalls.h"

/*
 * The C library is not told, as it would be by fork(3). The process has one thread, so no lock is
 * held in the copy; and no Python runs on in the child, nor in that of child_in_own_memory: all
 * that both do is system calls.
 */
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
	/* Its errno is the parent's, which waits: it has the same thread pointer. */
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

/* --- one that may hang --- */

static void close_fds(unsigned int first, unsigned int last)
{
	if (first > last || !syscall(NR_close_range, first, last, 0U))
		return;
	for (unsigned int fd = first; fd <= last && fd < 4096; fd++)
		close((int)fd);
}

/* Whoever waits for the end of what criu has open must not wait for a child that hangs. */
static void let_go_of_fds(int kept)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	for (int fd = 0; fd < 3 && null >= 0; fd++)
		if (fd != kept)
			dup2(null, fd);
	close_fds(3, kept > 3 ? (unsigned int)kept - 1 : 2);
	close_fds(kept >= 3 ? (unsigned int)kept + 1 : 3, ~0U);
}

pid_t child_that_may_hang(int kept)
{
	pid_t parent = getpid(), pid = child_with_copy(0);

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(ECHILD);
	let_go_of_fds(kept);
	return 0;
}

/* Wait for a tenth of a second at most: signals may come in. */
static bool is_ready(int fd)
{
	struct pollfd poll_fd = { .fd = fd, .events = POLLIN };

	return poll(&poll_fd, 1, 100) > 0;
}

void child_give_up(pid_t pid)
{
	int pid_fd = or_errno(syscall(NR_pidfd_open, pid, 0));

	kill(pid, SIGKILL);
	/* A request that a server has taken may keep it for as long as the server likes. */
	for (int i = 0; pid_fd >= 0 && i < 10 && !is_ready(pid_fd); i++)
		;
	waitpid(pid, NULL, __WALL | WNOHANG);
	if (pid_fd >= 0)
		close(pid_fd);
}

/* Count waits, not time: a machine, or this process, may have been suspended. */
static bool await_beats(int pid_fd, const uint64_t *beats, unsigned int patience)
{
	uint64_t last = __atomic_load_n(beats, __ATOMIC_ACQUIRE);

	for (unsigned int left = patience; left; left--) {
		uint64_t now;

		if (is_ready(pid_fd))
			return true;
		now = __atomic_load_n(beats, __ATOMIC_ACQUIRE);
		if (now != last)
			left = patience + 1;
		last = now;
	}
	return false;
}

int child_with_patience(int (*work)(void *arg), void *arg, const uint64_t *beats,
			unsigned int patience)
{
	pid_t pid = child_that_may_hang(-1);
	int pid_fd, result;

	if (pid < 0)
		return -errno;
	if (pid == 0)
		_exit(work(arg));
	pid_fd = or_errno(syscall(NR_pidfd_open, pid, 0));
	if (pid_fd >= 0 && await_beats(pid_fd, beats, patience)) {
		result = child_await(pid);
	} else {
		child_give_up(pid);
		result = pid_fd < 0 ? pid_fd : -ETIMEDOUT;
	}
	if (pid_fd >= 0)
		close(pid_fd);
	return result;
}

int sys_await_input(int fd, unsigned int patience)
{
	while (patience--)
		if (is_ready(fd))
			return 1;
	return 0;
}

int sys_child_that_may_hang(int kept)
{
	pid_t pid = child_that_may_hang(kept);

	return pid < 0 ? -errno : pid;
}

int sys_child_await(int pid)
{
	return child_await(pid);
}

void sys_child_give_up(int pid)
{
	child_give_up(pid);
}
