/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Python as the shim sees it. It starts in CRIU's process, when there is something to
 * decide: at the first file of a dump on a mount that CRIU does not know, or at the init of
 * a restore whose images need the plugin. Tasks have it by their fork.
 */
#ifndef CRIU_DETACHED_EMBEDDED_H
#define CRIU_DETACHED_EMBEDDED_H

#include <stdbool.h>

#include "embed/host.h"

/* What Python is given; it is filled in anew in every init. */
extern struct criu_host host;

/* Its entry points, once it runs. */
extern struct embedded python;

/** host_fill - fill in what Python is given from CRIU's functions, which are resolved */
void host_fill(void);

/**
 * start_python - open embed.so and start Python, unless it runs
 *
 * Return: 0, or -1; the reason is in the log once for each init.
 */
int start_python(void);

/** python_runs - has it been started? */
bool python_runs(void);

/** python_reset - have Python forget an earlier dump or restore of this process */
void python_reset(void);

#endif
