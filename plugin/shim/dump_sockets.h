/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Unix sockets at dump. CRIU asks for a bound socket's file, then for its mode and its link
 * (unix_resolve_name, criu/sk-unix.c). For a file on a detached mount it is given something
 * that stands in for it.
 */
#ifndef CRIU_DETACHED_DUMP_SOCKETS_H
#define CRIU_DETACHED_DUMP_SOCKETS_H

/**
 * dump_sockets_init - steer ioctl and fstat
 *
 * Where they can't be, CRIU reads the link of a socket's file, and Python refuses that.
 */
void dump_sockets_init(void);

/** socket_stand_in_link - the link of a stand-in, which is then forgotten; NULL: it is none */
const char *socket_stand_in_link(int fd);

#endif
