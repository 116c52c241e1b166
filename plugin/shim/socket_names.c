// SPDX-License-Identifier: GPL-2.0-only
/* The table of sockets' names, and which two of them would be mixed up. */
#define _GNU_SOURCE
#include "socket_names.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

struct socket_name *socket_names;
size_t nr_socket_names;

void socket_names_reset(void)
{
	free(socket_names);
	socket_names = NULL;
	nr_socket_names = 0;
}

int socket_name_add(uint32_t number, const char *name, int deleted)
{
	struct socket_name *grown, *added;

	grown = realloc(socket_names, (nr_socket_names + 1) * sizeof(*grown));
	if (!grown)
		return -1;
	socket_names = grown;
	added = &grown[nr_socket_names++];
	snprintf(added->name, sizeof(added->name), "%s", name);
	added->number = number;
	added->deleted = deleted;
	return 0;
}

size_t socket_directory_size(const char *name)
{
	size_t size = strrchr(name, '/') - name;

	while (size && name[size - 1] == '/')
		size--;
	return size;
}

static bool same_directory(const char *one, const char *other)
{
	size_t size = socket_directory_size(one);

	return size == socket_directory_size(other) && !memcmp(one, other, size);
}

enum socket_note socket_name_note(const char *name, uint32_t place, bool deleted)
{
	if (*name != '/')
		return SOCKET_NOTED;
	for (size_t i = 0; i < nr_socket_names; i++) {
		const struct socket_name *n = &socket_names[i];
		bool same = !strcmp(n->name, name);

		/* The sockets that a listening one has accepted have its name. */
		if (same && n->number == place && n->deleted == deleted)
			return SOCKET_NOTED;
		if (n->number != place &&
		    (same || (n->deleted && deleted && same_directory(n->name, name))))
			return SOCKET_CONFLICT;
	}
	return socket_name_add(place, name, deleted) ? SOCKET_NO_MEMORY : SOCKET_NOTED;
}

bool socket_name_in(const struct sockaddr *addr, socklen_t len, char name[SOCKET_NAME_SIZE])
{
	const struct sockaddr_un *un = (const struct sockaddr_un *)addr;
	size_t size;

	if (len <= offsetof(struct sockaddr_un, sun_path) || addr->sa_family != AF_UNIX ||
	    !un->sun_path[0])
		return false;
	size = len - offsetof(struct sockaddr_un, sun_path);
	if (size >= SOCKET_NAME_SIZE)
		return false;
	memcpy(name, un->sun_path, size);
	name[size] = '\0';
	return true;
}
