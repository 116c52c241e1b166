"""A filesystem of one directory that a program serves (FUSE), as strange as some servers are.

It says of no file how much it takes on disk, and gives inodes numbers of 64 bits.
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

from .test_served import mount_fuse

FIRST_INODE = (1 << 64) - 1000

# linux/fuse.h
LOOKUP, FORGET, GETATTR, SETATTR, UNLINK, LINK, OPEN, READ, WRITE = 1, 2, 3, 4, 10, 13, 14, 15, 16
STATFS, RELEASE, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, CREATE = 17, 18, 25, 26, 27, 28, 29, 35
BATCH_FORGET = 42
ENOENT, ENOSYS = 2, 38
HIDDEN = b".fuse_hidden"
ROOT = 1  # the root's node
HEADER = 40  # bytes of a request's header


class Files:
    """The files, by node, and their names."""

    def __init__(self, hides: bool) -> None:
        self.hides = hides
        self.modes = {ROOT: stat.S_IFDIR | 0o755}
        self.contents: dict[int, bytearray] = {}
        self.names: dict[bytes, int] = {}
        self.opened: dict[int, int] = {}  # how often

    def unlink(self, name: bytes) -> None:
        """Libfuse keeps an open file, under another name, until it is closed."""
        node = self.names.pop(name)
        if self.hides and self.opened.get(node):
            self.names[HIDDEN + b"%016x" % node] = node

    def close(self, node: int) -> None:
        """Forget an open file."""
        self.opened[node] -= 1
        if not self.opened[node]:
            for name in [each for each in self.names if each.startswith(HIDDEN)]:
                if self.names[name] == node:
                    del self.names[name]

    def entries(self, offset: int) -> bytes:
        """struct fuse_dirent of what comes after an offset."""
        found = b""
        for number, (name, node) in enumerate(self.names.items(), 1):
            if number > offset:
                entry = struct.pack("=2Q2I", FIRST_INODE + node, number, len(name), 8) + name
                found += entry + bytes(-len(entry) % 8)
        return found

    def attributes(self, node: int) -> bytes:
        """struct fuse_attr; blocks are zero."""
        size = len(self.contents.get(node, b""))
        links = sum(one == node for one in self.names.values()) if node != ROOT else 2
        times = (0,) * 6
        numbers = (self.modes[node], links, 0, 0, 0, 4096, 0)
        return struct.pack("=3Q3Q3I7I", FIRST_INODE + node, size, 0, *times, *numbers)

    def entry(self, node: int) -> bytes:
        """struct fuse_entry_out."""
        return struct.pack("=4Q2I", node, 0, 0, 0, 0, 0) + self.attributes(node)

    def answer(self, opcode: int, node: int, body: bytes) -> bytes | int:
        """What a request is answered with; an int is an error."""
        name = body[{CREATE: 16, LINK: 8}.get(opcode, 0) :].partition(b"\0")[0]
        if opcode in (LOOKUP, UNLINK) and name not in self.names:
            return ENOENT
        if opcode == LOOKUP:
            return self.entry(self.names[name])
        if opcode == UNLINK:
            self.unlink(name)
            return b""
        if opcode == LINK:
            self.names[name] = struct.unpack_from("=Q", body)[0]
            return self.entry(self.names[name])
        if opcode == CREATE:
            new = self.names[name] = len(self.modes) + 1
            self.opened[new] = 1
            self.modes[new], self.contents[new] = struct.unpack_from("=4xI", body)[0], bytearray()
            return self.entry(new) + bytes(16)
        return self.answer_plain(opcode, node, body)

    def answer_plain(self, opcode: int, node: int, body: bytes) -> bytes | int:
        """Likewise, of requests without a name."""
        if opcode in (READ, WRITE):
            at, size = struct.unpack_from("=QI", body, 8)
            if opcode == READ:
                return bytes(self.contents[node][at : at + size])
            content = self.contents[node]
            content.extend(bytes(max(0, at + size - len(content))))
            content[at : at + size] = body[40:]
            return struct.pack("=II", size, 0)
        if opcode == SETATTR:
            valid, size, mode = struct.unpack_from("=I12xQ44xI", body)
            if valid & 1:
                self.modes[node] = mode
            if valid & 8:
                content = self.contents[node]
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


def mount_files(source: Path, hides: bool = False) -> None:
    """Mount it, served by a process of its own.

    Args:
        source: where.
        hides: as most servers, a deleted file that is open gets a name that nobody gave it.
    """
    mount_fuse(source, Files(hides).serve)
