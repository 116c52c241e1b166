# SPDX-License-Identifier: GPL-2.0-only
"""Loop devices, loop(4): what one shows, and how one is configured.

Names and numbers are those of linux/loop.h.
"""

from __future__ import annotations

import fcntl

from criu_detached._kernel import ffi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached._kernel import LoopConfig, LoopInfo64

LO_FLAGS_READ_ONLY = 1
LO_FLAGS_AUTOCLEAR = 4
LO_FLAGS_PARTSCAN = 8
LO_FLAGS_DIRECT_IO = 16

_LOOP_GET_STATUS64 = 0x4C05
_LOOP_CONFIGURE = 0x4C0A  # Linux 5.8
_LOOP_CTL_GET_FREE = 0x4C82


def loop_status(device: int) -> LoopInfo64:
    """LOOP_GET_STATUS64: struct loop_info64 of an open loop device.

    Raises:
        OSError: ENXIO where it has no file.
    """
    info: LoopInfo64 = ffi.new("struct uapi_loop_info64 *")
    fcntl.ioctl(device, _LOOP_GET_STATUS64, ffi.buffer(info))
    return info


def new_loop_config() -> LoopConfig:
    """Return a struct loop_config of zeroes, for loop_configure()."""
    config: LoopConfig = ffi.new("struct uapi_loop_config *")
    return config


def loop_configure(device: int, config: LoopConfig) -> None:
    """LOOP_CONFIGURE, Linux 5.8: give an open loop device its file.

    Raises:
        OSError: EBUSY where it has one.
    """
    fcntl.ioctl(device, _LOOP_CONFIGURE, ffi.buffer(config))


def free_loop(control: int) -> int:
    """LOOP_CTL_GET_FREE: the number of a loop device that has no file.

    Args:
        control: /dev/loop-control, open for writing.
    """
    return fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
