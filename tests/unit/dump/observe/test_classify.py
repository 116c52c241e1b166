"""Which kind of mount is a file on? The kernel's answer and the older ways must agree."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from criu_detached import kernel
from criu_detached.dump.observe import classify
from criu_detached.dump.observe.classify import Classifier
from criu_detached.dump.open_file import OpenFile
from criu_detached.kernel import mountinfo, namespaces

from ... import support


def no_namespace_walk() -> Iterator[int]:
    """mount_ns_ids() before Linux 6.12."""
    raise OSError(errno.ENOTTY, "NS_MNT_GET_INFO")


@pytest.fixture(params=["best", "walk", "mountinfo"])
def classifier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Classifier:
    """By the best means of this kernel, and by the older ones."""
    made = Classifier()
    if request.param != "best":
        made.by_fd = False
    if request.param == "mountinfo":
        monkeypatch.setattr(namespaces, "mount_ns_ids", no_namespace_walk)
    return made


def kind(classifier: Classifier, fd: int) -> str:
    """The kind of an fd's mount; no fd stays open."""
    before = support.open_fds()
    found = classifier.classify(OpenFile.of(fd))
    assert support.open_fds() == before
    return found.name


def test_attached(classifier: Classifier, directory: int) -> None:
    assert kind(classifier, directory) == classify.ATTACHED


def test_detached(classifier: Classifier, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "source").mkdir()
    with support.detached(tmp_path / "mnt", tmp_path / "source") as fd:
        assert kind(classifier, fd) == classify.DETACHED


def test_attached_in_another_namespace(classifier: Classifier, tmp_path: Path) -> None:
    """A file that is reached through a process of it."""
    (tmp_path / "mnt").mkdir()
    script = f"mount -t tmpfs none {tmp_path}/mnt && echo ready && exec sleep 1000"
    command = ["unshare", "--mount", "sh", "-c", script]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert child.stdout is not None
        if child.stdout.readline() != b"ready\n":
            pytest.skip("may not make mount namespaces")
        fd = os.open(f"/proc/{child.pid}/root{tmp_path}/mnt", os.O_PATH)
        assert kernel.fstat(fd).mnt_id not in {m.mnt_id for m in mountinfo.read_mountinfo()}
        assert kind(classifier, fd) == classify.ATTACHED
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
    try:
        assert kind(classifier, fd) == classify.DETACHED  # its namespace is gone
    finally:
        os.close(fd)


def test_anonymous(classifier: Classifier, tmp_path: Path, directory: int) -> None:
    (tmp_path / "file").touch()
    tree = support.clone_mount(directory)
    file = os.open("file", os.O_RDONLY, dir_fd=tree)
    try:
        found = {kind(classifier, tree), kind(classifier, file)}
    finally:
        os.close(tree)
    try:
        if found == {classify.DETACHED}:
            pytest.skip("this kernel (before 6.15) does not tell these apart")
        assert found == {classify.ANONYMOUS}
        assert kind(classifier, file) == classify.DETACHED
    finally:
        os.close(file)


def test_below_an_anonymous_mount(classifier: Classifier, tmp_path: Path, directory: int) -> None:
    """A mount that is not at the root of its tree, where the kernel may answer otherwise."""
    (tmp_path / "below").mkdir()
    with support.mounted(tmp_path / "below", "-t", "tmpfs", "none"):
        flags = kernel.OPEN_TREE_CLONE | kernel.OPEN_TREE_CLOEXEC | 0x8000
        tree = kernel.open_tree(-100, os.fsencode(tmp_path), flags)
    below = os.open("below", os.O_PATH, dir_fd=tree)
    try:
        if kind(classifier, tree) == classify.DETACHED:
            pytest.skip("this kernel (before 6.15) does not tell these apart")
        assert kind(classifier, below) == classify.ANONYMOUS
    finally:
        os.close(below)
        os.close(tree)


def test_kernel_internal(classifier: Classifier) -> None:
    read, write = os.pipe()
    namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    event = os.eventfd(0)
    for fd in (read, namespace, event):
        assert kind(classifier, fd) == classify.INTERNAL
    for fd in (read, write, namespace, event):
        os.close(fd)


def test_file_without_a_name(classifier: Classifier, tmp_path: Path) -> None:
    """Deleted or not, its mount is the same."""
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        assert kind(classifier, file.fileno()) == classify.ATTACHED
