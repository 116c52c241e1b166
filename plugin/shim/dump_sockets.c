// SPDX-License-Identifier: GPL-2.0-only
/* Steers how CRIU looks at a socket's file; what stands in for it, Python says. */
#define _GNU_SOURCE
#include "dump_sockets.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "criu.h"
#include "embedded.h"
#include "kernel/syscalls.h"
#include "log.h"
#include "socket_names.h"
#include "steer.h"

/* What CRIU was given for a socket's file last, until it asks for the link. */
static struct {
	int fd;	  /* CRIU's */
	int same; /* a duplicate of it, ours; -1: there is no stand-in */
	struct stat st;
	char link[64 + SOCKET_NAME_SIZE];
} stand_in = { .same = -1 };

static void forget_stand_in(void)
{
	if (stand_in.same >= 0)
		close(stand_in.same);
	stand_in.same = -1;
}

/* Where CRIU gave up and closed it, its number may be another file's by now. */
static bool is_stand_in(int fd)
{
	pid_t pid;

	if (stand_in.same < 0 || fd != stand_in.fd)
		return false;
	pid = getpid(); /* only now: each file of a dump comes by here */
	if (!syscall(SYS_kcmp, pid, pid, KCMP_FILE, fd, stand_in.same))
		return true;
	forget_stand_in();
	return false;
}

const char *socket_stand_in_link(int fd)
{
	if (!is_stand_in(fd))
		return NULL;
	forget_stand_in();
	return stand_in.link;
}

/*
 * The link ends in the name for a relative name, and has an end that says whether it is
 * deleted for an absolute one.
 */
static void write_link(uint32_t id, const char *name, bool deleted)
{
	const char *end = deleted ? " (deleted)" : "";

	if (*name == '/') {
		snprintf(stand_in.link, sizeof(stand_in.link), "/%s", end);
		return;
	}
	/* CRIU leaves these out as well (cut_path_ending, criu/util.c). */
	name += strncmp(name, "./", 2) ? 0 : 2;
	snprintf(stand_in.link, sizeof(stand_in.link), SOCKET_KEY_PREFIX "%x]/%s%s", id, name, end);
}

/* Give CRIU @other for @file, or @file itself if that is -1; fstat(2) still tells of @file. */
static int set_stand_in(int file, int other)
{
	int given = other >= 0 ? other : file;

	forget_stand_in();
	stand_in.fd = given;
	stand_in.same = fcntl(given, F_DUPFD_CLOEXEC, 0);
	if (stand_in.same < 0 || fstat(file, &stand_in.st)) {
		pr_err("can't look at the file of a unix socket: %s", strerror(errno));
		forget_stand_in();
		return -1;
	}
	if (other >= 0)
		close(file);
	return given;
}

static int note_name(const char *name, const struct socket_answer *answer)
{
	switch (socket_name_note(name, answer->place, answer->deleted)) {
	case SOCKET_CONFLICT:
		pr_err("can't dump a unix socket at %s: by its name it is mixed up with another"
		       " one, and one of them is on a detached mount: close one before the dump",
		       quoted(name));
		return -1;
	case SOCKET_NO_MEMORY:
		pr_err("no memory for the names of unix sockets");
		return -1;
	case SOCKET_NOTED:
		break;
	}
	return 0;
}

static bool name_of(int sk, char name[SOCKET_NAME_SIZE])
{
	struct sockaddr_storage addr;
	socklen_t len = sizeof(addr);

	return !getsockname(sk, (struct sockaddr *)&addr, &len) &&
	       socket_name_in((struct sockaddr *)&addr, len, name);
}

/* A socket's file (O_PATH): the fd that CRIU is given, or -1, and the file is still open. */
static int dump_socket_file(int sk, int file)
{
	struct socket_answer answer = { .stand_in = -1 };
	char name[SOCKET_NAME_SIZE];
	struct file_facts facts;
	int id = 0, given = file;

	if (!name_of(sk, name) || facts_of(file, &facts))
		return file;
	answer.deleted = facts.nlink == 0;
	if (!mount_known(facts.mnt_id))
		id = start_python() ? -1 : python.dump_bound_socket(file, name, &facts, &answer);
	if (id < 0 || note_name(name, &answer)) {
		given = -1;
	} else if (id) {
		write_link(id, name, answer.deleted);
		given = set_stand_in(file, answer.stand_in);
	}
	if (given < 0 && answer.stand_in >= 0)
		close(answer.stand_in);
	return given;
}

/* Here both the socket and its file are at hand. */
static int steered_ioctl(int fd, unsigned long request, ...)
{
	va_list args;
	void *arg;
	int ret, file;

	va_start(args, request);
	arg = va_arg(args, void *);
	va_end(args);
	ret = ioctl(fd, request, arg);
	if ((unsigned int)request != SIOCUNIXFILE_ || ret < 0) /* it is an int in musl */
		return ret;
	file = dump_socket_file(fd, ret);
	if (file < 0) {
		close(ret);
		errno = EIO;
	}
	return file;
}

static int steered_fstat(int fd, struct stat *st)
{
	if (!is_stand_in(fd))
		return fstat(fd, st);
	*st = stand_in.st;
	return 0;
}

static const struct steering file_steering[] = {
	STEER_STAT("fstat", steered_fstat),
};

static const struct steering ioctl_steering[] = {
	{ "ioctl", steered_ioctl },
	{ "__ioctl_time64", steered_ioctl }, /* on 32-bit processors */
};

void dump_sockets_init(void)
{
	socket_names_reset();
	forget_stand_in();
	/* A stand-in is of use only where fstat tells of the file itself. */
	if (!STEER(file_steering))
		STEER(ioctl_steering);
}
