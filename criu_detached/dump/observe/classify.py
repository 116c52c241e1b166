# SPDX-License-Identifier: GPL-2.0-only
"""What kind of mount is a file on? Asked for mounts that CRIU does not know.

With STATMOUNT_BY_FD (Linux 7.0) the kernel answers. Before, what is attached in no
mount namespace is detached: from Linux 6.12 every namespace is asked for the mount,
before that the mountinfo of every process is read, which misses namespaces that no
process lives in.
"""

from __future__ import annotations

import errno
import os

from criu_detached import kernel
from criu_detached.dump.observe import trees
from criu_detached.filesystems import types
from criu_detached.kernel import mountinfo, namespaces, statmount
from criu_detached.kernel.fds import Fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.dump.open_file import OpenFile
    from criu_detached.kernel.statmount import StatMount

ATTACHED = "attached"  # in some mount namespace; CRIU's business
DETACHED = "detached"
ANONYMOUS = "anonymous"
INTERNAL = "kernel-internal"

_WANTED = trees.WANTED | statmount.STATMOUNT_MNT_NS_ID

_NO_WALK = {errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EINVAL, errno.EPERM}


class Kind:
    """The answer: the kind of the mount, and what statmount says where the kernel can."""

    __slots__ = ("name", "statmount")

    def __init__(self, name: str, statmount: StatMount | None = None) -> None:
        self.name = name
        self.statmount = statmount

    @property
    def is_ours(self) -> bool:
        """Whether the plugin is there for such a mount: it is in no mount namespace."""
        return self.name in (DETACHED, ANONYMOUS)


class Classifier:
    """Tells kinds of mounts apart, by the best means that the running kernel has."""

    def __init__(self) -> None:
        """Probe the kernel."""
        self.by_fd = statmount.has_by_fd()

    def classify(self, file: OpenFile) -> Kind:
        """Classify the mount of an open file.

        Args:
            file: the file.

        Raises:
            OSError: the kernel refused an answer.
        """
        if self.by_fd:
            return _by_fd(file)
        if _is_internal(file):
            return Kind(INTERNAL)
        if _is_attached(file):
            return Kind(ATTACHED)
        return Kind(ANONYMOUS if _is_anonymous(file.fd) else DETACHED)


def _by_fd(file: OpenFile) -> Kind:
    try:
        found = statmount.by_fd(file.fd, _WANTED)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return Kind(INTERNAL)
        if error.errno == errno.ENOENT:
            return Kind(ANONYMOUS)
        raise
    if not found.mask & statmount.STATMOUNT_MNT_NS_ID:
        return Kind(DETACHED, found)
    # An anonymous tree of several mounts has an id like a namespace, but it is none that is seen.
    anonymous = not _is_attached(file) and _is_anonymous(file.fd)
    return Kind(ANONYMOUS if anonymous else ATTACHED, found)


def _is_internal(file: OpenFile) -> bool:
    if file.fs_type is types.HUGETLBFS:
        return file.stat.dev in _hugetlb_devices()
    if file.fs_type.stands_for:
        # Where one is bind-mounted its link is a path.
        return not file.link.startswith(b"/")
    return file.fs_type.comes_back == types.INTERNAL


def _hugetlb_devices() -> set[int]:
    """Devices of the kernel's own hugetlbfs mounts, one for each size of huge page."""
    devices: set[int] = set()
    try:
        names = os.listdir("/sys/kernel/mm/hugepages")  # hugepages-2048kB
    except OSError:
        return devices  # no sysfs here
    for name in names:
        kib = int(name.removeprefix("hugepages-").removesuffix("kB"))
        log2 = (kib << 10).bit_length() - 1
        flags = os.MFD_HUGETLB | log2 << os.MFD_HUGE_SHIFT
        try:
            with Fd(os.memfd_create("criu-detached", flags)) as fd:
                devices.add(kernel.fstat(fd).dev)
        except OSError:
            continue
    return devices


def _is_attached(file: OpenFile) -> bool:
    try:
        unique = kernel.mnt_id_unique(file.fd)
        return any(statmount.mount_in_ns(unique, ns_id) for ns_id in namespaces.mount_ns_ids())
    except OSError as error:
        # Before Linux 6.8 no unique id, before 6.12 no walk over the namespaces; and from
        # within a PID namespace it is not allowed (EPERM of NS_MNT_GET_NEXT).
        if error.errno not in _NO_WALK:
            raise
    for _, pids in mountinfo.namespaces():
        for _, mount in mountinfo.mounts_of_namespace(pids or [os.getpid()]):
            if mount.mnt_id == file.stat.mnt_id:
                return True
    return False


def _is_anonymous(fd: int) -> bool:
    """From Linux 6.15 open_tree clones anonymous mounts, and still no detached ones.

    Before 6.15 an anonymous mount is taken for a detached one.
    """
    try:
        return bool(trees.view(fd))
    except OSError:
        return True  # it was cloned, but a deleted file cannot be attached
