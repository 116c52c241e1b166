// SPDX-License-Identifier: GPL-2.0-only
/* Lines of CRIU's log. What they say is made where it is found out. */
#define _GNU_SOURCE
#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "criu.h"

static const char *const level_prefix[] = { "", "Error ", "Warn  ", "", "" };

void print_line(int level, const char *format, ...)
{
	char text[4096];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	if (criu.print_on_level)
		criu.print_on_level(level, "%s%s: %s\n", level_prefix[level], "criu-detached",
				    text);
	else
		fprintf(stderr, "%scriu-detached: %s\n", level_prefix[level], text);
}

const char *quoted(const char *name)
{
	static char text[1024];
	size_t at = 0;

	for (; *name && at < sizeof(text) - 8; name++) {
		unsigned char c = *name;

		if (c < ' ' || c > '~' || c == '\\')
			at += sprintf(text + at, "\\x%02x", c);
		else
			text[at++] = c;
	}
	strcpy(text + at, *name ? "..." : "");
	return text;
}
