"""A filesystem of one directory that a program serves (FUSE), as strange as some servers are.

It says of no file how much it takes on disk, and gives inodes numbers of 64 bits.
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

from .mounts.test_served import mount_fuse

FIRST_INODE = (1 << 64) - 1000

# linux/fuse.h
LOOKUP, FORGET, GETATTR, SETATTR, MKNOD, UNLINK, LINK = 1, 2, 3, 4, 8, 10, 13
OPEN, READ, WRITE = 14, 15, 16
STATFS, RELEASE, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, CREATE = 17, 18, 25, 26, 27, 28, 29, 35
BATCH_FORGET = 42
ENOENT, ENOSYS = 2, 38
HIDDEN = b".fuse_hidden"
ROOT = 1  # the root's node
HEADER = 40  # bytes of a request's header


class File:
    """A file, which may have several names."""

    def __init__(self, number: int, mode: int) -> None:
        self.number = number
        self.mode = mode
        self.content = bytearray()


class Files:
    """The files, by node, and their names."""

    def __init__(self, hides: bool, numbers: str) -> None:
        self.hides = hides
        self.numbers = numbers
        self.nodes = {ROOT: File(ROOT, stat.S_IFDIR | 0o755)}
        self.names: dict[bytes, int] = {}
        self.opened: dict[int, int] = {}  # how often

    def unlink(self, name: bytes) -> None:
        """Libfuse keeps an open file, under another name, until it is closed."""
        node = self.names.pop(name)
        if self.hides and self.opened.get(node):
            hidden = {HIDDEN + b"%016x" % node: node}
            last = self.numbers == "alike"  # another file is found first
            self.names = {**self.names, **hidden} if last else {**hidden, **self.names}

    def close(self, node: int) -> None:
        """Forget an open file."""
        self.opened[node] -= 1
        if not self.opened[node]:
            for name in [each for each in self.names if each.startswith(HIDDEN)]:
                if self.names[name] == node:
                    del self.names[name]
            if self.numbers == "nodes":
                self.renumber(node)

    def renumber(self, node: int) -> None:
        """Libfuse gives a file a new node, when the kernel has forgotten the old one."""
        for name in [each for each in self.names if self.names[each] == node]:
            self.names[name] = len(self.nodes) + 1
            self.nodes[self.names[name]] = self.nodes[node]

    def link(self, node: int, name: bytes) -> bytes:
        """To libfuse a node is a name, and not a file."""
        self.names[name] = len(self.nodes) + 1 if self.hides else node
        self.nodes[self.names[name]] = self.nodes[node]
        return self.entry(self.names[name])

    def is_lost(self, node: int) -> bool:
        """Libfuse reaches what is not open by its name (try_get_path, lib/fuse.c)."""
        return self.hides and node != ROOT and node not in self.names.values()

    def entries(self, offset: int) -> bytes:
        """struct fuse_dirent of what comes after an offset."""
        found = b""
        for number, (name, node) in enumerate(self.names.items(), 1):
            if number > offset:
                entry = struct.pack("=2Q2I", self.number(node), number, len(name), 8) + name
                found += entry + bytes(-len(entry) % 8)
        return found

    def number(self, node: int) -> int:
        """The inode number that is shown of a node."""
        shown = {"alike": 0, "nodes": node, "files": self.nodes[node].number}
        return FIRST_INODE + shown[self.numbers]

    def attributes(self, node: int) -> bytes:
        """struct fuse_attr; blocks are zero."""
        file = self.nodes[node]
        links = sum(self.nodes[one] is file for one in self.names.values()) if node != ROOT else 2
        times = (0,) * 6
        numbers = (file.mode, links, 0, 0, 0, 4096, 0)
        return struct.pack("=3Q3Q3I7I", self.number(node), len(file.content), 0, *times, *numbers)

    def entry(self, node: int) -> bytes:
        """struct fuse_entry_out."""
        return struct.pack("=4Q2I", node, 0, 0, 0, 0, 0) + self.attributes(node)

    def answer(self, opcode: int, node: int, body: bytes) -> bytes | int:
        """What a request is answered with; an int is an error."""
        name = body[{CREATE: 16, LINK: 8, MKNOD: 16}.get(opcode, 0) :].partition(b"\0")[0]
        if opcode in (LOOKUP, UNLINK) and name not in self.names:
            return ENOENT
        if opcode == LOOKUP:
            return self.entry(self.names[name])
        if opcode == UNLINK:
            self.unlink(name)
            return b""
        if opcode == LINK:
            [linked] = struct.unpack_from("=Q", body)
            return ENOENT if self.is_lost(linked) else self.link(linked, name)
        if opcode in (CREATE, MKNOD):
            new = self.names[name] = len(self.nodes) + 1
            [mode] = struct.unpack_from("=4xI" if opcode == CREATE else "=I", body)
            self.nodes[new] = File(new, mode)
            if opcode == MKNOD:
                return self.entry(new)
            self.opened[new] = 1
            return self.entry(new) + bytes(16)
        return self.answer_plain(opcode, node, body)

    def answer_plain(self, opcode: int, node: int, body: bytes) -> bytes | int:
        """Likewise, of requests without a name."""
        if opcode in (OPEN, GETATTR, SETATTR) and self.is_lost(node):
            return ENOENT
        content = self.nodes[node or ROOT].content
        if opcode in (READ, WRITE):
            at, size = struct.unpack_from("=QI", body, 8)
            if opcode == READ:
                return bytes(content[at : at + size])
            content.extend(bytes(max(0, at + size - len(content))))
            content[at : at + size] = body[40:]
            return struct.pack("=II", size, 0)
        if opcode == SETATTR:
            valid, size, mode = struct.unpack_from("=I12xQ44xI", body)
            if valid & 1:
                self.nodes[node].mode = mode
            if valid & 8:
                del content[size:]
                content.extend(bytes(size - len(content)))
        if opcode == READDIR:
            return self.entries(struct.unpack_from("=Q", body, 8)[0])
        if opcode == OPEN:
            self.opened[node] = self.opened.get(node, 0) + 1
        if opcode == RELEASE:
            self.close(node)
        if opcode in (GETATTR, SETATTR):
            return struct.pack("=QII", 0, 0, 0) + self.attributes(node)
        plain = {
            STATFS: bytes(80),
            INIT: struct.pack("=6I", 7, 22, 0, 0, 0, 1 << 16),
            OPEN: bytes(16),
            OPENDIR: bytes(16),
            RELEASE: b"",
            RELEASEDIR: b"",
            FLUSH: b"",
        }
        return plain.get(opcode, ENOSYS)

    def serve(self, fuse: int) -> None:
        """Answer until the filesystem is gone."""
        while True:
            try:
                request = os.read(fuse, 1 << 18)
            except OSError:
                return
            opcode, unique, node = struct.unpack_from("=IQQ", request, 4)
            if opcode in (FORGET, BATCH_FORGET):
                continue
            found = self.answer(opcode, node, request[HEADER:])
            body, error = (b"", -found) if isinstance(found, int) else (found, 0)
            os.write(fuse, struct.pack("=IiQ", 16 + len(body), error, unique) + body)


def mount_files(source: Path, hides: bool = False, numbers: str = "files") -> None:
    """Mount it, served by a process of its own.

    Args:
        source: where.
        hides: as most servers, those of libfuse's high-level API: a deleted file that is open gets
            a name that nobody gave it, and one that is not is gone, whoever knows its node.
        numbers: the inode numbers of files: their own ("files"); those of nodes, which are others
            when a file is opened again ("nodes", libfuse without use_ino); or one for all
            ("alike"), as where a server shows several filesystems by their own numbers.
    """
    mount_fuse(source, Files(hides, numbers).serve)
