"""Rebinding of a program's imports (plugin/shim/steer.c), in programs that are linked in every way.

Where compilers for other processors and qemu-user are installed, it is tried for those as well.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

PLUGIN = Path(__file__).resolve().parents[3] / "plugin"

# What CRIU does: it opens a plugin and calls libc. Its own mprotect fails when it is told to.
PROGRAM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

int failing; /* which call of mprotect from now on */

int mprotect(void *start, size_t size, int flags)
{
	if (failing && !--failing) {
		errno = EACCES;
		return -1;
	}
	return syscall(SYS_mprotect, start, size, flags);
}

static int call(void *plugin, const char *name)
{
	int (*function)(void) = (int (*)(void))dlsym(plugin, name);

	return function ? function() : -99;
}

static void show(const char *when, int answer)
{
	char buffer[16];
	ssize_t link = readlink("/proc/self/none", buffer, sizeof(buffer));
	const char *large;
	struct stat st;

	if (fstat(0, &st))
		puts("no fstat");
	large = st.st_size == 1LL << 40 ? "large" : "small";
	printf("%s: %d, readlink %zd, %s, access %d\\n", when, answer, link, large, access("/none", 0));
}

int main(int argc, char **argv)
{
	void *plugin = dlopen(argv[argc - 1], RTLD_NOW);

	if (!plugin) {
		puts(dlerror());
		return 1;
	}
	show("before", 0);
	show("steered", call(plugin, "steer_readlink"));
	show("in the plugin", call(plugin, "own_readlink"));
	show("no such import", call(plugin, "steer_nothing"));
	failing = 1;
	show("page not writable", call(plugin, "steer_access"));
	failing = 2;
	show("page left writable", call(plugin, "steer_access"));
	failing = 0;
	show("both", call(plugin, "steer_access"));
	show("unsteered", call(plugin, "unsteer"));
	return 0;
}
"""

STEERING = """
#include "shim/steer.h"
#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

static int our_fstat(int fd, struct stat *st)
{
	int ret = fstat(fd, st);

	st->st_size = 1LL << 40;
	return ret;
}

static ssize_t our_readlink(const char *path, char *buffer, size_t size)
{
	return path && buffer && size ? 42 : -1;
}

static int our_access(const char *path, int mode)
{
	return path && !mode ? 43 : -1;
}

static const struct steering link_steering[] = { { "readlink", our_readlink } };
static const struct steering stat_steering[] = { STEER_STAT("fstat", our_fstat) };
static const struct steering access_steering[] = { { "access", our_access } };
static const struct steering no_steering[] = { { "no_such_function", our_access } };

int steer_readlink(void) { return STEER(link_steering) || STEER(stat_steering) ? errno : 0; }
int steer_access(void) { return STEER(access_steering) ? errno : 0; }
int steer_nothing(void) { return STEER(no_steering) ? errno : 0; }
int own_readlink(void) { char c; return readlink("/proc/self/none", &c, 1); }
int unsteer(void) { unsteer_main_program(); return 0; }
"""

ENOENT, EACCES = 2, 13

FULL_RELRO = [
    "before: 0, readlink -1, small, access -1",
    "steered: 0, readlink 42, large, access -1",
    "in the plugin: -1, readlink 42, large, access -1",
    f"no such import: {ENOENT}, readlink 42, large, access -1",
    f"page not writable: {EACCES}, readlink 42, large, access -1",
    f"page left writable: {EACCES}, readlink 42, large, access -1",
    "both: 0, readlink 42, large, access 43",
    "unsteered: 0, readlink -1, small, access -1",
]
# There no page has to be made writable, so nothing fails.
WRITABLE = [
    line.replace(f"{EACCES}, readlink 42, large, access -1", "0, readlink 42, large, access 43")
    for line in FULL_RELRO
]

LINKED = {
    "full-relro": (["-fPIE", "-pie", "-Wl,-z,now,-z,relro"], FULL_RELRO),
    "no-plt": (["-fPIE", "-pie", "-fno-plt", "-Wl,-z,now,-z,relro"], FULL_RELRO),
    "fixed-address": (["-fno-pie", "-no-pie", "-Wl,-z,now,-z,relro"], FULL_RELRO),
    "lazy": (["-fPIE", "-pie", "-Wl,-z,lazy,-z,relro"], WRITABLE),
    "no-relro": (["-fPIE", "-pie", "-Wl,-z,norelro"], WRITABLE),
}

# Other processors that CRIU is built for: compiler, emulator.
OTHERS = {
    "aarch64": "aarch64-linux-gnu",
    "arm": "arm-linux-gnueabihf",
    "loongarch64": "loongarch64-linux-gnu",
    "ppc64le": "powerpc64le-linux-gnu",
    "riscv64": "riscv64-linux-gnu",
    "s390x": "s390x-linux-gnu",
}


def grounds() -> dict[str, tuple[str, list[str]]]:
    """Compilers that are here, with what runs the programs that they make."""
    found: dict[str, tuple[str, list[str]]] = {"native": ("cc", [])}
    for processor, triple in OTHERS.items():
        emulator = shutil.which(f"qemu-{processor}-static") or shutil.which(f"qemu-{processor}")
        if shutil.which(f"{triple}-gcc") and emulator:
            found[processor] = (f"{triple}-gcc", [emulator, "-L", f"/usr/{triple}"])
            if processor == "arm":
                found["arm-time64"] = (f"{triple}-gcc -D_TIME_BITS=64", found["arm"][1])
    if shutil.which("musl-gcc"):
        found["musl"] = ("musl-gcc", [])
    return found


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
@pytest.mark.parametrize("ground", grounds())
@pytest.mark.parametrize("linked", LINKED)
def test_steered(tmp_path: Path, ground: str, linked: str) -> None:
    (compiler, emulator), (options, expected) = grounds()[ground], LINKED[linked]
    program, plugin = tmp_path / "program", tmp_path / "plugin.so"
    program.with_suffix(".c").write_text(PROGRAM)
    plugin.with_suffix(".c").write_text(STEERING)
    flags = ["-std=gnu11", "-O1", "-Wall", "-Werror", "-D_FILE_OFFSET_BITS=64", f"-I{PLUGIN}"]
    sources = [str(plugin.with_suffix(".c")), str(PLUGIN / "shim" / "steer.c")]
    command = [*compiler.split(), *flags, "-shared", "-fPIC", *sources, "-o", str(plugin)]
    subprocess.run(command, check=True)
    command = [*compiler.split(), *flags, *options, "-rdynamic", str(program.with_suffix(".c"))]
    subprocess.run([*command, "-o", str(program), "-ldl"], check=True)
    run = subprocess.run(
        [*emulator, str(program), str(plugin)], check=True, capture_output=True, text=True
    )
    # Some linkers for RISC-V leave its GOT out of what is made read-only.
    assert run.stdout.splitlines() in ([expected, WRITABLE] if ground == "riscv64" else [expected])
