/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Names of unix sockets that are bound on a detached mount.
 *
 * CRIU does all that it does to a socket, in both directions. At dump it is shown a stand-in
 * for the socket's file, on a mount that it knows (dump_sockets.c). At restore the socket's
 * name is made to lead to the detached mount (restore_sockets.c). Both know sockets by these
 * names.
 */
#ifndef CRIU_DETACHED_SOCKET_NAMES_H
#define CRIU_DETACHED_SOCKET_NAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

/* What a socket can be bound to: sun_path, and an end mark that it may lack. */
#define SOCKET_NAME_SIZE 109

/*
 * The directory that CRIU starts a relative name from (UnixSkEntry.name_dir) is this with
 * the record's id. CRIU's own begin with a slash.
 */
#define SOCKET_KEY_PREFIX "criu-detached["

struct socket_name {
	char name[SOCKET_NAME_SIZE];
	uint32_t number; /* dump: the place; restore: the record's id */
	bool deleted;
};
extern struct socket_name *socket_names;
extern size_t nr_socket_names;

/** socket_names_reset - forget all names */
void socket_names_reset(void);

/**
 * socket_name_add - say what name a record is about
 *
 * Return: 0, or -1 without memory.
 */
int socket_name_add(uint32_t number, const char *name, int deleted);

enum socket_note { SOCKET_NOTED, SOCKET_CONFLICT, SOCKET_NO_MEMORY };

/**
 * socket_name_note - remember the name of a socket's file at dump
 * @name: as the socket was bound to it
 * @place: the directory that it is in, if that is on a detached mount; else 0
 * @deleted: the name is no longer there
 *
 * A restore tells sockets apart by their names alone if those are absolute.
 *
 * Return: SOCKET_CONFLICT when another place has the same name, or when two places have
 * deleted names in what is one directory by its path.
 */
enum socket_note socket_name_note(const char *name, uint32_t place, bool deleted);

/** socket_name_in - the name in an address; false: it is none, or one without a file */
bool socket_name_in(const struct sockaddr *addr, socklen_t len, char name[SOCKET_NAME_SIZE]);

/** socket_directory_size - length of the directory part of an absolute name, without the
 * slashes at its end */
size_t socket_directory_size(const char *name);

#endif
