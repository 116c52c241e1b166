/* SPDX-License-Identifier: GPL-2.0-only */
/* The parts of embed.so: what is generated at build time (embed_build.py), and start_python.c. */
#ifndef CRIU_DETACHED_EMBED_H
#define CRIU_DETACHED_EMBED_H

#include <Python.h>

#include "entry.h"

/* Written by freeze.py: the bytecode of all modules. */
extern const struct _frozen frozen_modules[];

/* The extension modules that embed.so is linked with: for Python they are built in. */
extern struct _inittab linked_modules[];

/* The interpreter's path, for messages. */
extern const wchar_t python_executable[];

/** run_package - import the package, which connects the functions of entry.h; 0, or -1 */
int run_package(void);

/** the_host - what Python may ask of CRIU */
const struct criu_host *the_host(void);

/* All that the shim looks up (host.h). */
extern criu_detached_start_python_t criu_detached_start_python;

#endif
