/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Numbers and locks that the restored tasks share: CRIU's process maps them before it forks the
 * tasks. What they mean is for criu_detached/restore/ and plugin/fast/ to say.
 */
#ifndef CRIU_DETACHED_SHARED_H
#define CRIU_DETACHED_SHARED_H

/**
 * shared_alloc - make entries of a lock and a number each; the numbers are -1 at first
 * @count: how many
 *
 * Return: 0, or -1 without memory.
 */
int shared_alloc(unsigned int count);

/** shared_lock - take the lock of an entry */
void shared_lock(unsigned int index);

/** shared_unlock - let go of the lock of an entry */
void shared_unlock(unsigned int index);

/** shared_get - the number of an entry */
int shared_get(unsigned int index);

/** shared_set - set the number of an entry */
void shared_set(unsigned int index, int value);

/** shared_free - another restore begins */
void shared_free(void);

#endif
