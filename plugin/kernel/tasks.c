// SPDX-License-Identifier: GPL-2.0-only
/* What other tasks have open, and the unix sockets of this one and of others. */
#define _GNU_SOURCE
#include "kernel.h"

#include <dirent.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "syscalls.h"

int sys_pidfd_getfd(int pidfd, int fd)
{
	return or_errno(syscall(NR_pidfd_getfd, pidfd, fd, 0));
}

int sys_kcmp(int tid, int other, int type)
{
	return or_errno(syscall(SYS_kcmp, tid, other, type, 0, 0));
}

static bool has_peer(int fd, const char *end)
{
	struct sockaddr_un addr = { 0 };
	socklen_t len = sizeof(addr);
	size_t size, wanted = strlen(end);

	if (getpeername(fd, (struct sockaddr *)&addr, &len) || addr.sun_family != AF_UNIX)
		return false;
	size = strnlen(addr.sun_path, sizeof(addr.sun_path));
	return size >= wanted && !memcmp(addr.sun_path + size - wanted, end, wanted);
}

int sys_has_peer(const char *end)
{
	DIR *fds = opendir("/proc/self/fd");
	const struct dirent *entry;
	int found = 0;

	if (!fds)
		return -errno;
	while (!found && (entry = readdir(fds)))
		found = entry->d_name[0] != '.' && has_peer(atoi(entry->d_name), end);
	closedir(fds);
	return found;
}

static bool has_name(int sk, const char *name)
{
	struct sockaddr_un addr = { 0 };
	socklen_t len = sizeof(addr);

	return !getsockname(sk, (struct sockaddr *)&addr, &len) &&
	       !strncmp(addr.sun_path, name, sizeof(addr.sun_path));
}

int sys_bound_file(int pid_fd, int fd, const char *name)
{
	int file, sk = syscall(NR_pidfd_getfd, pid_fd, fd, 0), domain = 0;
	socklen_t len = sizeof(domain);

	if (sk < 0)
		return -errno;
	/* Sockets of other families have requests of the same number. */
	if (getsockopt(sk, SOL_SOCKET, SO_DOMAIN, &domain, &len))
		file = -errno;
	else if (domain != AF_UNIX)
		file = -EAFNOSUPPORT;
	else
		file = *name && !has_name(sk, name) ? -ENOENT : or_errno(ioctl(sk, SIOCUNIXFILE_));
	close(sk);
	return file;
}
