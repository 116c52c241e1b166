// SPDX-License-Identifier: GPL-2.0-only
#define _GNU_SOURCE
#include "dump_sockets.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "criu.h"
#include "embedded.h"
#include "kernel/syscalls.h"
#include "log.h"
#include "socket_names.h"
#include "steer.h"

/* What CRIU was given for a socket's file last; it asks for the link of each. */
static struct {
	int fd; /* -1: there is none */
	struct stat st;
	char link[64 + SOCKET_NAME_SIZE];
} stand_in = { .fd = -1 };

const char *socket_stand_in_link(int fd)
{
	if (fd != stand_in.fd)
		return NULL;
	stand_in.fd = -1;
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
	if (fstat(file, &stand_in.st))
		return -1;
	if (other >= 0)
		close(file);
	stand_in.fd = other >= 0 ? other : file;
	return stand_in.fd;
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
	if (fd != stand_in.fd)
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
	stand_in.fd = -1;
	/* A stand-in is of use only where fstat tells of the file itself. */
	if (!STEER(file_steering))
		STEER(ioctl_steering);
}
