/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The functions of criu_detached/entry.py, as entry.c calls them; what they are asked
 * and return is told of struct embedded (host.h), through which the shim reaches them: the shim
 * has no function of such a name. embed_build.py gives these declarations to cffi.
 */
#ifndef CRIU_DETACHED_ENTRY_H
#define CRIU_DETACHED_ENTRY_H

#include "host.h"

int dump_link(int fd, const char *link, const struct file_facts *facts);
int dump_ext_file(int fd, int id, const struct file_facts *facts);
int dump_thread_file(int fd, const char *link, const struct file_facts *facts, const char *whose);
int dump_bound_socket(int fd, const char *name, const struct file_facts *facts,
		      struct socket_answer *answer);
int dump_peer(const char *name);
int dump_watches(void);
int dump_deleted_watched(int fd);
int pre_dump_watches(void);
int dump_flush(void);
int restore_init(void);
int restore_open(const char *name, int flags);
int restore_ext_file(int id);
int enter_socket_dir(uint32_t id);
int restore_bound(uint32_t id);
void reset_package(void);

#endif
