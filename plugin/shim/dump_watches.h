/* SPDX-License-Identifier: GPL-2.0-only */
/* Watches (inotify, fanotify) at dump, and at a pre-dump: see watch_names.h. */
#ifndef CRIU_DETACHED_DUMP_WATCHES_H
#define CRIU_DETACHED_DUMP_WATCHES_H

#include <stdbool.h>

/**
 * dump_watches_init - steer the calls of CRIU's search for watched inodes
 * @in_pre_dump: tasks run when CRIU searches
 *
 * Where they can't be, CRIU refuses watches of what is on no mount that it knows.
 */
void dump_watches_init(bool in_pre_dump);

#endif
