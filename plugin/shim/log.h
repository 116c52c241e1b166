/* SPDX-License-Identifier: GPL-2.0-only */
/* The plugin's lines in CRIU's log. */
#ifndef CRIU_DETACHED_LOG_H
#define CRIU_DETACHED_LOG_H

#include "embed/host.h" /* LOG_ERROR and so on */

/** print_line - one line with the plugin's prefix; on stderr, where CRIU has no log */
void __attribute__((format(printf, 2, 3))) print_line(int level, const char *format, ...);

#define pr_err(...) print_line(LOG_ERROR, __VA_ARGS__)
#define pr_warn(...) print_line(LOG_WARN, __VA_ARGS__)
#define pr_debug(...) print_line(LOG_DEBUG, __VA_ARGS__)

/**
 * quoted - a name of the dumped system for a message, as errors.quote has it
 *
 * Return: it in one line, and not long, until the next call.
 */
const char *quoted(const char *name);

#endif
