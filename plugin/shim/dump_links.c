// SPDX-License-Identifier: GPL-2.0-only
/*
 * Steers readlink of /proc/self/fd/N: is the file on a mount that CRIU knows? Else Python records
 * it, its external key is set, and CRIU writes an external regular file by itself
 * (dump_one_reg_file, criu/files-reg.c).
 */
#define _GNU_SOURCE
#include "dump_links.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "criu.h"
#include "dump_deleted.h"
#include "dump_sockets.h"
#include "embedded.h"
#include "log.h"
#include "steer.h"

/* --- the external key --- */

/* The one live external key. CRIU's list keeps a pointer to this buffer. */
static char live_key[64];

static int adopt_key(struct external *ext, void *arg)
{
	if (strcmp(ext->id, arg))
		return 0;
	ext->id = live_key;
	return 1;
}

static int same_key(struct external *ext, void *arg)
{
	return ext->id != live_key && !strcmp(ext->id, arg);
}

static int is_foreign(struct external *ext, void *arg)
{
	(void)arg;
	return ext->id != live_key;
}

static void format_key(char *key, size_t size, const struct file_facts *facts)
{
	snprintf(key, size, "file[%x:%" PRIx64 "]", facts->mnt_id, facts->ino);
}

/*
 * Every file walks CRIU's list of external keys, so ours has one entry only, and its
 * id is rewritten: the look-up follows right after the link is read.
 */
static int set_live_key(const struct file_facts *facts)
{
	static char placeholder[] = "file[" PLUGIN_NAME "]";

	if (!live_key[0]) {
		if (criu.add_external(placeholder) ||
		    !criu.external_for_each_type("file", adopt_key, placeholder)) {
			pr_err("CRIU did not take an external file key");
			return -1;
		}
	}
	format_key(live_key, sizeof(live_key), facts);
	return 0;
}

/* A key that the user gave wins. Most users give none, so most files need no text compare. */
static bool user_gave_key(const struct file_facts *facts)
{
	char key[sizeof(live_key)];

	if (!criu.external_for_each_type("file", is_foreign, NULL))
		return false;
	format_key(key, sizeof(key), facts);
	return criu.external_for_each_type("file", same_key, key) != 0;
}

/* --- from a link to an answer --- */

bool on_kernel_shmem(const struct file_facts *facts)
{
	static dev_t shmem_dev;
	struct stat st;
	int fd;

	if (!shmem_dev) {
		fd = memfd_create(PLUGIN_NAME, MFD_CLOEXEC);
		if (fd < 0)
			return false;
		if (!fstat(fd, &st))
			shmem_dev = st.st_dev;
		close(fd);
	}
	return facts->dev == shmem_dev;
}

/* On a mount that CRIU dumps: its own business, but for two things. */
static enum dump_answer leave_known(const char *link, const struct file_facts *facts)
{
	/* A file of an attached mount that is named like a key would be taken for one of ours. */
	if (!strncmp(link, "/ile[", 5)) {
		pr_err("the file %s has the form of an external file key: rename it", quoted(link));
		return DUMP_REFUSE;
	}
	if (deleted_file_left(link, facts)) {
		pr_err("no memory for the deleted files");
		return DUMP_REFUSE;
	}
	return DUMP_LEAVE;
}

static enum dump_answer ask_python(int fd, const char *link, const struct file_facts *facts)
{
	int answer;

	/*
	 * Without Python, CRIU itself refuses what is detached, and dumps what is not. But a
	 * socket's path it would restore on another mount.
	 */
	if (start_python())
		return S_ISSOCK(facts->mode) ? DUMP_REFUSE : DUMP_LEAVE;
	answer = python.dump_link(fd, link, facts);
	if (answer == DUMP_EXTERNAL)
		return set_live_key(facts) ? DUMP_REFUSE : DUMP_EXTERNAL;
	return answer == DUMP_LEAVE ? DUMP_LEAVE : DUMP_REFUSE;
}

static enum dump_answer answer_to_link(int fd, const char *link)
{
	struct file_facts facts;

	if (facts_of(fd, &facts))
		return DUMP_LEAVE;
	if (mount_known(facts.mnt_id))
		return leave_known(link, &facts);
	if (on_kernel_shmem(&facts) || user_gave_key(&facts))
		return DUMP_LEAVE;
	return ask_python(fd, link, &facts);
}

/* --- steering --- */

/* read_fd_link (criu/util.c) is the only reader of such paths. */
static bool is_fd_path(const char *path, int *fd)
{
	static const char prefix[] = "/proc/self/fd/";
	char *end;
	long n;

	if (strncmp(path, prefix, sizeof(prefix) - 1))
		return false;
	n = strtol(path + sizeof(prefix) - 1, &end, 10);
	if (*end || end == path + sizeof(prefix) - 1 || n < 0 || n > INT_MAX)
		return false;
	*fd = (int)n;
	return true;
}

static ssize_t steered_readlink(const char *path, char *buf, size_t size)
{
	ssize_t len = readlink(path, buf, size);
	int saved_errno = errno;
	char link[PATH_MAX];
	const char *other;
	int fd;

	/* Links that fill the buffer are an error to CRIU; those without '/' are no paths. */
	if (len <= 0 || (size_t)len >= size || len >= PATH_MAX || buf[0] != '/' ||
	    !is_fd_path(path, &fd))
		return len;
	other = socket_stand_in_link(fd);
	if (other) {
		len = strnlen(other, size);
		memcpy(buf, other, len);
		return len;
	}
	memcpy(link, buf, len);
	link[len] = '\0';
	if (answer_to_link(fd, link) == DUMP_REFUSE) {
		errno = EIO;
		return -1;
	}
	errno = saved_errno;
	return len;
}

static ssize_t steered_readlink_chk(const char *path, char *buf, size_t size, size_t bufsize)
{
	if (size > bufsize)
		abort(); /* what __readlink_chk does */
	return steered_readlink(path, buf, size);
}

static const struct steering link_steering[] = {
	{ "readlink", steered_readlink },
	{ "__readlink_chk", steered_readlink_chk },
};

int dump_links_init(void)
{
	live_key[0] = '\0';
	deleted_files_reset();
	return STEER(link_steering);
}
