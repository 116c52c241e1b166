// SPDX-License-Identifier: GPL-2.0-only
/* Numbers and locks in memory that the tasks share. What they mean: shared.h. */
#define _GNU_SOURCE
#include "shared.h"

#include <pthread.h>
#include <stddef.h>
#include <sys/mman.h>

/*
 * Whoever dies with a lock leaves the others waiting. CRIU then ends them all (sigchld_handler,
 * criu/cr-restore.c). A robust lock would do nothing here: it is libc that makes it known to
 * the kernel, and CRIU's tasks are made by clone(2) without it.
 */
static struct shared {
	pthread_mutex_t lock;
	int value;
} *shared;
static size_t shared_size; /* in bytes; 0: there is none */

static int init_entries(unsigned int count)
{
	pthread_mutexattr_t attr;
	int err = pthread_mutexattr_init(&attr);

	if (err)
		return err;
	err = pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	for (unsigned int i = 0; !err && i < count; i++) {
		err = pthread_mutex_init(&shared[i].lock, &attr);
		shared[i].value = -1;
	}
	pthread_mutexattr_destroy(&attr);
	return err;
}

int shared_alloc(unsigned int count)
{
	size_t size = ((size_t)count + 1) * sizeof(*shared); /* no mapping has no bytes */
	void *mapped;

	shared_free();
	mapped = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (mapped == MAP_FAILED)
		return -1;
	shared = mapped;
	shared_size = size;
	if (!init_entries(count))
		return 0;
	shared_free();
	return -1;
}

void shared_free(void)
{
	if (shared_size)
		munmap(shared, shared_size);
	shared = NULL;
	shared_size = 0;
}

void shared_lock(unsigned int index)
{
	pthread_mutex_lock(&shared[index].lock);
}

void shared_unlock(unsigned int index)
{
	pthread_mutex_unlock(&shared[index].lock);
}

int shared_get(unsigned int index)
{
	return __atomic_load_n(&shared[index].value, __ATOMIC_ACQUIRE);
}

void shared_set(unsigned int index, int value)
{
	__atomic_store_n(&shared[index].value, value, __ATOMIC_RELEASE);
}
