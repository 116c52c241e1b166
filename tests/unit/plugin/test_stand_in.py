"""What stands in for the file of a bound socket (plugin/shim/dump_sockets.c) is no other file."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PLUGIN = Path(__file__).resolve().parents[3] / "plugin"

# What CRIU does with the file of a socket, as far as it gets: it asks for its stat, then its link.
PROGRAM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static const char *(*link_of)(int fd);

static void show(const char *what, int fd)
{
	struct stat st = { 0 };
	int ret = fstat(fd, &st);
	const char *link = link_of(fd);

	printf("%s: %s, %s\\n", what, ret ? "no stat" : S_ISSOCK(st.st_mode) ? "a socket" :
		S_ISDIR(st.st_mode) ? "a directory" : "another file", link ? link : "no link");
}

int main(int argc, char **argv)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX, .sun_path = "socket" };
	int sk = socket(AF_UNIX, SOCK_STREAM, 0), fd;
	void *plugin = dlopen(argv[1], RTLD_NOW);

	if (argc != 2 || !plugin || bind(sk, (struct sockaddr *)&addr, sizeof(addr)))
		return 1;
	((void (*)(void))dlsym(plugin, "dump_sockets_init"))();
	link_of = (const char *(*)(int))dlsym(plugin, "socket_stand_in_link");
	show("before", -1);
	fd = ioctl(sk, SIOCPROTOPRIVATE);
	show("stand-in", fd);
	show("its link was read", fd);
	close(fd);
	fd = ioctl(sk, SIOCPROTOPRIVATE);
	close(fd);
	dup2(open("/dev/null", O_RDONLY), fd);
	show("the same number", fd);
	fd = ioctl(sk, SIOCPROTOPRIVATE);
	close(fd);
	show("closed", fd);
	fd = ioctl(sk, SIOCPROTOPRIVATE);
	dup2(open(".", O_PATH), fd); /* what stands in, opened for something else */
	show("the same directory", fd);
	return 0;
}
"""

# The rest of the plugin: a CRIU that knows no mount, and a Python that has a record for the socket.
REST = """
#define _GNU_SOURCE
#include "shim/criu.h"
#include "shim/embedded.h"
#include <fcntl.h>

struct criu_host host;
struct embedded python;
struct criu_functions criu;

static void *unknown(unsigned int mnt_id)
{
	(void)mnt_id;
	return NULL;
}

static int record(int fd, const char *name, const struct file_facts *facts,
			struct socket_answer *answer)
{
	answer->stand_in = open(".", O_PATH | O_CLOEXEC);
	return fd >= 0 && name && facts ? 7 : -1;
}

int start_python(void)
{
	criu.lookup_mnt_id = unknown;
	python.dump_bound_socket = record;
	return 0;
}

__attribute__((constructor)) static void prepare(void)
{
	start_python();
}
"""


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_another_file_with_its_number(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    program, plugin = tmp_path / "program", tmp_path / "plugin.so"
    program.with_suffix(".c").write_text(PROGRAM)
    plugin.with_suffix(".c").write_text(REST)
    parts = [PLUGIN / "shim" / f"{name}.c" for name in ("dump_sockets", "log", "steer")]
    sources = [plugin.with_suffix(".c"), *parts, PLUGIN / "shim" / "socket_names.c"]
    flags = ["-std=gnu11", "-O1", "-Wall", "-Werror", "-D_FILE_OFFSET_BITS=64", f"-I{PLUGIN}"]
    subprocess.run(["cc", *flags, "-shared", "-fPIC", *sources, "-o", plugin], check=True)
    subprocess.run(["cc", *flags, program.with_suffix(".c"), "-o", program, "-ldl"], check=True)
    done = subprocess.run([program, plugin], cwd=tmp_path, check=True, capture_output=True)
    assert done.stdout.decode().splitlines() == [
        "before: no stat, no link",
        "stand-in: a socket, criu-detached[7]/socket",
        "its link was read: a directory, no link",
        "the same number: another file, no link",
        "closed: no stat, no link",
        "the same directory: a directory, no link",
    ]
