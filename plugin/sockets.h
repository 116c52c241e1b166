/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Unix sockets that are bound to a name on a detached mount.
 *
 * CRIU does all that it does to a socket, in both directions. At dump it is shown a
 * stand-in for the socket's file, on a mount that it knows. At restore the socket's name
 * is made to lead to the detached mount, from the first call that uses it until CRIU
 * returns to where it was (prep_unix_sk_cwd to revert_unix_sk_cwd, criu/sk-unix.c).
 */
#ifndef CRIU_DETACHED_SOCKETS_H
#define CRIU_DETACHED_SOCKETS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "steer.h"

#define SIOCUNIXFILE_ (SIOCPROTOPRIVATE + 0) /* linux/un.h; with linux/sockios.h */

/* What a socket can be bound to: sun_path, and an end mark that it may lack. */
#define SOCKET_NAME_SIZE 109

/** sockets_reset - forget all names; done in every init */
void sockets_reset(void);

/* --- dump --- */

enum socket_note { SOCKET_NOTED, SOCKET_CONFLICT, SOCKET_NO_MEMORY };

/**
 * socket_name_note - remember the name of a socket's file
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

/** socket_name_of - the name that a unix socket is bound to; false: none, or abstract */
bool socket_name_of(int sk, char name[SOCKET_NAME_SIZE]);

/**
 * socket_stand_in - give CRIU something that it can dump for a socket's file
 * @fd: the file (O_PATH); it is closed when something stands in for it
 * @other: what stands in for it; -1: @fd itself
 * @id: of the record
 * @name: that the socket was bound to
 * @deleted: the name is no longer there
 *
 * What fstat(2) says of it is what it says of @fd. Its link ends in the name for a
 * relative name, and has an end that says whether it is deleted for an absolute one.
 *
 * Return: the fd for CRIU, or -1.
 */
int socket_stand_in(int fd, int other, uint32_t id, const char *name, bool deleted);

/** socket_stand_in_link - the link of a stand-in, which is then forgotten; NULL: it is none */
const char *socket_stand_in_link(int fd);

/** socket_stand_in_stat - fstat(2) of a stand-in; false: it is none */
bool socket_stand_in_stat(int fd, struct stat *st);

/* --- restore --- */

/**
 * sockets_expect - how names are made to lead to a mount
 * @lead: makes the name of a record lead there, by changing this task's root and
 *        working directory; 0, or -1 with the reason in the log
 * @bound: a socket was bound to it, and all is done that is to be done there
 */
void sockets_expect(int (*lead)(uint32_t id), int (*bound)(uint32_t id));

/**
 * socket_name_add - say what name a record is about
 *
 * Return: 0, or -1 without memory.
 */
int socket_name_add(uint32_t id, const char *name, int deleted);

/** sockets_recorded - is there any? */
bool sockets_recorded(void);

/** socket_view_leave - CRIU is about to go elsewhere: put back the task's root */
void socket_view_leave(void);

/* What must be steered for a restore of such sockets, and fchdir. */
extern const struct steering socket_steering[];
extern const size_t nr_socket_steering;

#endif
