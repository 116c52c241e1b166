/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef CRIU_DETACHED_STEER_H
#define CRIU_DETACHED_STEER_H

#include <stddef.h>

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
 * Return: how many slots this call rebound, or -1 with errno set; then none is.
 */
int steer_main_program(const struct steering *wanted, size_t count);

/** unsteer_main_program - put back every slot; harmless when none was rebound */
void unsteer_main_program(void);

#endif
