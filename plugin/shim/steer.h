/* SPDX-License-Identifier: GPL-2.0-only */
/* Steering: what CRIU calls of libc is answered by the plugin. Each init says what it steers. */
#ifndef CRIU_DETACHED_STEER_H
#define CRIU_DETACHED_STEER_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* O_TMPFILE */
#endif

#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One libc function that the main program imports, and what shall answer instead. */
struct steering {
	const char *name;
	void *replacement;
};

/**
 * steer_main_program - rebind imported functions in the main program alone
 * @wanted: the functions and their replacements
 * @count: how many
 *
 * Rebinds every JUMP_SLOT and GLOB_DAT slot of the main program that imports one of
 * the names. Libraries, and the plugin itself, keep calling libc.
 *
 * Return: 0 when at least one was rebound, else -1 with errno set: ENOENT when the program
 * imports none of them. Then none is, and what earlier calls rebound stays.
 */
int steer_main_program(const struct steering *wanted, size_t count);

#define STEER(table) steer_main_program(table, sizeof(table) / sizeof((table)[0]))

/*
 * Entries of a table for a function that fills in a struct stat. On 32-bit processors there is
 * one for each layout; the replacement has that which the plugin is compiled with.
 */
#if UINTPTR_MAX > UINT32_MAX
#define STEER_STAT(name, replacement)  \
	{ name, replacement },         \
	{                              \
		name "64", replacement \
	}
#elif defined(__USE_TIME_BITS64)
#define STEER_STAT(name, replacement) { "__" name "64_time64", replacement }
#else
#define STEER_STAT(name, replacement) { name "64", replacement }
#endif

/** why_not_steered - what the errno of steer_main_program means for a name, until the next call */
const char *why_not_steered(const char *name);

/** unsteer_main_program - put back every slot; harmless when none was rebound */
void unsteer_main_program(void);

/** needs_mode - has open(2) a mode? O_TMPFILE shares a bit with O_DIRECTORY */
static inline bool needs_mode(int flags)
{
	return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE;
}

#endif
