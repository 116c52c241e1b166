/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The room in which Python lives inside CRIU: its start (start_python.c), what it is asked
 * (entry.c), what embed_build.py and freeze.py generate at build time. No file is looked at here
 * and no record made: that is for fast/ and criu_detached/. What the shim sees of this room is
 * host.h alone.
 */
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

/** start_interpreter - start Python isolated; 0, or -1 with the reason in the log */
int start_interpreter(void);

/** cannot_start - say so in CRIU's log; -1 */
int cannot_start(const char *what, const char *why);

/* All that the shim looks up (host.h). */
extern criu_detached_start_python_t criu_detached_start_python;

#endif
