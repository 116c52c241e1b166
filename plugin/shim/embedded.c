// SPDX-License-Identifier: GPL-2.0-only
/* Opens embed.so, beside the shim, and starts Python in it, once. */
#define _GNU_SOURCE
#include "embedded.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "criu.h"
#include "log.h"

struct embedded python;

static enum { NOT_STARTED, RUNS, FAILED } state;

/* <plugin dir>/criu_detached/embed.so, beside this very file. */
static int embedded_path(char *path, size_t size)
{
	char self[PATH_MAX];
	Dl_info info;
	char *slash;

	if (!dladdr(&python, &info) || !info.dli_fname || !realpath(info.dli_fname, self))
		return -1;
	slash = strrchr(self, '/');
	if (!slash)
		return -1;
	*slash = '\0';
	return snprintf(path, size, "%s/" PLUGIN_NAME "/embed.so", self) < (int)size ? 0 : -1;
}

static int load_and_start(void)
{
	criu_detached_start_python_t *start;
	char path[PATH_MAX];
	void *module;
	int ret;

	if (embedded_path(path, sizeof(path))) {
		pr_err("can't tell where the plugin was loaded from; install it again");
		return -1;
	}
	module = dlopen(path, RTLD_NOW | RTLD_NODELETE);
	if (!module) {
		pr_err("can't load the plugin's Python part (%s); build it again", dlerror());
		return -1;
	}
	start = (criu_detached_start_python_t *)dlsym(module, "criu_detached_start_python");
	python.build = ~(uint64_t)BUILD_ID;
	ret = start ? start(&host, &python) : -1;
	if (python.build == BUILD_ID)
		return ret;
	pr_err("criu_detached.so and %s are of two builds: build or install the plugin again",
	       path);
	return -1;
}

int start_python(void)
{
	if (state == NOT_STARTED)
		state = load_and_start() ? FAILED : RUNS;
	return state == RUNS ? 0 : -1;
}

bool python_runs(void)
{
	return state == RUNS;
}

void python_reset(void)
{
	if (state == RUNS)
		python.reset();
	else
		state = NOT_STARTED;
}
