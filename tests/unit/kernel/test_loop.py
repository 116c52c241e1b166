"""Loop devices: the structures are the kernel's, and one is configured and read."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from pathlib import Path

import pytest

from criu_detached import kernel
from criu_detached._kernel import ffi
from criu_detached.kernel import loop
from criu_detached.kernel.devnum import huge_decode_dev
from criu_detached.kernel.fds import Fd

HEADER = Path("/usr/include/linux/loop.h")


@pytest.mark.parametrize("name", ["loop_info64", "loop_config"])
def test_layout_is_the_kernels(tmp_path: Path, name: str) -> None:
    """Checked against the header that is installed."""
    if not HEADER.exists() or f"struct {name} {{" not in HEADER.read_text():
        pytest.skip("needs the kernel's headers, of Linux 5.8 or later")
    declared = re.search(rf"struct {name} \{{(.*?)\n\}};", HEADER.read_text(), re.DOTALL)
    assert declared is not None
    fields = re.findall(r"(\w+)(?:\[\w+\])?;", declared.group(1))
    parts = [f"offsetof(struct {name}, {field})" for field in fields]
    source = "#include <linux/loop.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {\n"
    for part in [*parts, f"sizeof(struct {name})"]:
        source += f'printf("%zu ", {part});\n'
    (tmp_path / "layout.c").write_text(source + "}\n")
    program = str(tmp_path / "layout")
    subprocess.run(["cc", "-o", program, str(tmp_path / "layout.c")], check=True)
    found = list(map(int, subprocess.check_output([program]).split()))
    ours = f"struct uapi_{name}"
    offsets = [ffi.offsetof(ours, field.removeprefix("__")) for field in fields]
    assert found == [*offsets, ffi.sizeof(ours)]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(1 << 20))
    return path


def configured(file: int, flags: int) -> Fd:
    """A loop device over a file, of some offset and size; the test is skipped without any."""
    config = loop.new_loop_config()
    config.fd = file
    config.block_size = 512
    config.info.lo_offset = 4096
    config.info.lo_sizelimit = 65536
    config.info.lo_flags = flags
    config.info.lo_file_name = b"name"
    try:
        with Fd.open("/dev/loop-control", os.O_RDWR) as control:
            number = loop.free_loop(control)
        device = Fd.open(f"/dev/loop{number}", os.O_RDONLY)
    except OSError as error:
        pytest.skip(f"no loop device here: {error}")
    loop.loop_configure(device, config)
    with pytest.raises(OSError, match="busy") as refusal:
        loop.loop_configure(device, config)
    assert refusal.value.errno == errno.EBUSY
    return device


def test_configured(image: Path) -> None:
    """What was asked for is there; the last user takes the device with it."""
    flags = loop.LO_FLAGS_READ_ONLY | loop.LO_FLAGS_AUTOCLEAR
    with Fd.open(bytes(image), os.O_RDONLY) as file:
        wanted = kernel.fstat(file)
        with configured(file, flags) as device:
            info = loop.loop_status(device)
            assert (huge_decode_dev(info.lo_device), info.lo_inode) == (wanted.dev, wanted.ino)
            assert (info.lo_offset, info.lo_sizelimit) == (4096, 65536)
            assert info.lo_flags & flags == flags
            assert os.lseek(device, 0, os.SEEK_END) == 65536


def test_no_loop_device(image: Path) -> None:
    with Fd.open(bytes(image), os.O_RDONLY) as file, pytest.raises(OSError, match="ioctl") as error:
        loop.loop_status(file)
    assert error.value.errno == errno.ENOTTY
