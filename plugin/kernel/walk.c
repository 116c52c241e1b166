// SPDX-License-Identifier: GPL-2.0-only
/*
 * The walk over tasks (walk.h): which are looked at, in which order, and again.
 *
 * The proof behind the order is in docs/design.md, "Looking at the machine".
 */
#include "look.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "child.h"
#include "syscalls.h"

/* --- memory for the answer --- */

/* Address space: no page of it takes memory before it is written to. */
static struct arena *new_arena(void)
{
	for (size_t size = (size_t)1 << 30; size >= 1 << 20; size /= 4) {
		struct arena *arena = mmap(NULL, size, PROT_READ | PROT_WRITE,
					   MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

		if (arena != MAP_FAILED) {
			arena->size = size;
			arena->capacity = (size - sizeof(*arena)) / sizeof(arena->seen[0]);
			return arena;
		}
	}
	return NULL;
}

void sys_free_walk(struct walk *walk)
{
	struct arena *arena = walk->arena;

	if (arena)
		munmap(arena, arena->size);
	walk->arena = NULL;
	walk->seen = NULL;
	walk->count = 0;
}

static int answer(struct walk *walk)
{
	struct arena *arena = walk->arena;

	walk->seen = arena->seen;
	walk->count = arena->count;
	walk->looks = arena->looks;
	return -arena->error;
}

/* --- order --- */

#define COMPARE(field)            \
	if (a->field != b->field) \
		return a->field < b->field ? -1 : 1;

static int compare(const void *one, const void *other)
{
	const struct seen *a = one, *b = other;

	COMPARE(dev)
	COMPARE(mnt_id)
	COMPARE(pid)
	COMPARE(tid)
	COMPARE(what)
	COMPARE(number)
	COMPARE(ino)
	COMPARE(socket)
	COMPARE(error)
	COMPARE(gone)
	return 0;
}

/* What is as it was is no news. */
static bool is_again(const struct seen *former, const struct seen *seen)
{
	struct seen same = *seen;

	same.gone = former->gone;
	return !compare(former, &same);
}

static void sort(struct arena *arena)
{
	size_t kept = 0;

	qsort(arena->seen, arena->count, sizeof(arena->seen[0]), compare);
	for (size_t i = 0; i < arena->count; i++)
		if (!kept || !is_again(&arena->seen[kept - 1], &arena->seen[i]))
			arena->seen[kept++] = arena->seen[i];
	arena->count = kept;
}

size_t sys_end_of_group(const struct seen *seen, size_t count, size_t start)
{
	size_t end = start;

	while (end < count && seen[end].dev == seen[start].dev &&
	       seen[end].mnt_id == seen[start].mnt_id)
		end++;
	return end;
}

/* --- tasks that do not run: looked at once, by this process --- */

int sys_look_at_tasks(struct walk *walk)
{
	struct look look = { .walk = walk, .arena = new_arena() };

	walk->arena = look.arena;
	if (!look.arena)
		return -ENOMEM;
	for (size_t i = 0; i < walk->nr_pids; i++) {
		look.pid = walk->pids[i];
		look_at_task(&look);
	}
	sort(look.arena);
	return answer(walk);
}

/* --- all others --- */

/* A process, when it was looked at last. */
struct looked {
	int32_t pid;
	uint32_t count;
	size_t first;
	uint64_t ran; /* its processor time before the look, ns */
};

struct others {
	struct look look;
	pid_t criu;
	struct looked *former; /* of the pass before, ascending */
	size_t nr_former, capacity;
	struct looked *now;
	size_t nr_now;
	size_t looked; /* at, in this pass */
};

/*
 * All threads of a process together, ns (clock_getcpuclockid(3)): what has run since is not the
 * same. 0: it ended.
 */
static uint64_t processor_time(pid_t pid)
{
	struct timespec time;

	if (clock_gettime((clockid_t)(~(unsigned int)pid << 3 | 2 /* CPUCLOCK_SCHED */), &time))
		return 0;
	return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static bool is_left_out(const struct others *others, pid_t pid)
{
	const struct walk *walk = others->look.walk;
	size_t low = 0, high = walk->nr_pids;

	while (low < high) {
		size_t middle = (low + high) / 2;

		if (walk->pids[middle] < pid)
			low = middle + 1;
		else
			high = middle;
	}
	return pid == others->criu || pid == getpid() ||
	       (low < walk->nr_pids && walk->pids[low] == pid);
}

static bool grow(struct others *others)
{
	size_t wanted = others->capacity ? others->capacity * 2 : 4096;
	struct looked *former = realloc(others->former, wanted * sizeof(*former));
	struct looked *now = realloc(others->now, wanted * sizeof(*now));

	if (former)
		others->former = former;
	if (now)
		others->now = now;
	if (!former || !now) {
		others->look.arena->error = ENOMEM;
		return false;
	}
	others->capacity = wanted;
	return true;
}

/* What was seen of a process that is looked at again, or is gone. */
static void set_gone(struct others *others, const struct looked *former)
{
	for (size_t i = 0; i < former->count; i++)
		others->look.arena->seen[former->first + i].gone = 1;
}

static void look_at_process(struct others *others, pid_t pid, const struct looked *former)
{
	struct arena *arena = others->look.arena;
	struct looked *now;

	if (others->nr_now == others->capacity && !grow(others))
		return;
	now = &others->now[others->nr_now++];
	now->pid = pid;
	now->ran = processor_time(pid);
	if (former && former->ran && former->ran == now->ran) {
		*now = *former;
		return;
	}
	if (former)
		set_gone(others, former);
	now->first = arena->count;
	others->look.pid = pid;
	look_at_task(&others->look);
	now->count = (uint32_t)(arena->count - now->first);
	others->looked++;
}

/* The list of processes, of which one at a time is read. */
struct listing {
	int proc;
	pid_t last;    /* the process that came last, */
	int64_t at;    /* and a place from which it or the next one comes first */
	size_t former; /* how many of those of the pass before were passed */
};

static void look_at_listed(struct others *others, struct listing *list, pid_t pid)
{
	const struct looked *former = NULL;

	if (is_left_out(others, pid))
		return;
	while (list->former < others->nr_former && others->former[list->former].pid < pid)
		set_gone(others, &others->former[list->former++]);
	if (list->former < others->nr_former && others->former[list->former].pid == pid)
		former = &others->former[list->former++];
	look_at_process(others, pid, former);
}

#define SHORT_LIST 128 /* bytes: all but the first of these entries are read in vain */

/* The next process; 0: there is none; -errno. */
static pid_t next_process(struct listing *list)
{
	char buf[2 * sizeof(struct dirent64)];
	long size;

	if (lseek(list->proc, list->at, SEEK_SET) < 0)
		return -errno;
	while ((size = syscall(SYS_getdents64, list->proc, buf, SHORT_LIST)) > 0) {
		for (long at = 0; at < size;) {
			const struct dirent64 *entry = (const void *)(buf + at);
			pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10);

			if (pid > list->last) {
				list->last = pid;
				return pid;
			}
			list->at = entry->d_off;
			at += entry->d_reclen;
		}
	}
	return size < 0 ? -errno : 0;
}

/*
 * The list ascends, and the kernel looks for the next process above the last one when it is asked
 * for it (proc_pid_readdir). A process that is forked comes above its parent, as numbers are given
 * in turn (alloc_pid), up to the largest; where they begin anew, the next pass comes by. So it is
 * asked for after the last one was looked at: if that had ended by then, what it has forked comes.
 */
static int look_at_all_processes(struct others *others)
{
	struct listing list = { .proc = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC) };
	pid_t pid;

	if (list.proc < 0)
		return errno;
	while ((pid = next_process(&list)) > 0 && !others->look.arena->error)
		look_at_listed(others, &list, pid);
	while (list.former < others->nr_former)
		set_gone(others, &others->former[list.former++]);
	close(list.proc);
	return pid < 0 ? -pid : 0;
}

#define PASSES 4

/*
 * Once all; then those that are new, and those that ran since they were looked at, for they may
 * have been given something: up to the pass in which nobody did.
 */
static void look_at_others(struct others *others)
{
	/* The time of what runs just now is counted at the next tick: 10 ms with HZ=100. */
	const struct timespec tick = { .tv_nsec = 11000000 };
	struct arena *arena = others->look.arena;

	for (int pass = 0; pass < PASSES && !arena->error; pass++) {
		struct looked *former = others->former;
		int error;

		others->former = others->now;
		others->nr_former = others->nr_now;
		others->now = former;
		others->nr_now = others->looked = 0;
		if (pass)
			nanosleep(&tick, NULL);
		error = look_at_all_processes(others);
		if (error)
			arena->error = error;
		if (!others->looked)
			break;
	}
	if (!arena->error)
		look_at_bound_sockets(&others->look);
	sort(arena);
}

/* --- the child --- */

static int be_the_child(void *arg)
{
	struct walk *walk = arg;
	struct others others = {
		.look = { .walk = walk, .arena = walk->arena, .sockets = sockets_new() },
		.criu = getppid()
	};

	if (!others.look.sockets || !grow(&others))
		return ENOMEM;
	look_at_others(&others);
	return 0;
}

/* The place that the child hangs at is to be passed over. */
static bool skip_place(struct arena *arena)
{
	if (arena->nr_skipped == MAX_SKIPPED)
		return false;
	arena->skipped[arena->nr_skipped++] = arena->at;
	arena->count = arena->looks = 0;
	arena->error = 0;
	return true;
}

int sys_look_at_others(struct walk *walk)
{
	struct arena *arena = new_arena();
	int err;

	walk->arena = arena;
	if (!arena)
		return -ENOMEM;
	do
		err = child_with_patience(be_the_child, walk, &arena->beats, walk->patience);
	while (err == -ETIMEDOUT && skip_place(arena));
	return err ? err : answer(walk);
}

int sys_may_trace(int pid)
{
	siginfo_t info;

	/* Nothing is taken, and nothing is waited for: ECHILD tells that it is somebody else's. */
	return !waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT | __WALL);
}
