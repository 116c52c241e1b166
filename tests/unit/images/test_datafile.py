"""Contents of files in the data file: whole and with their holes, or refused."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criu_detached.errors import DetachedError
from criu_detached.images import copying, datafile
from criu_detached.images.datafile import NAME, DataFileReader, DataFileWriter

from .. import support

BLOCK = 4096
MIB = 1 << 20

Pieces = list[tuple[int, bytes]]


def make(path: Path, pieces: Pieces, size: int) -> Path:
    """A file with data at some places, and holes elsewhere."""
    with support.opened(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as fd:
        for at, data in pieces:
            os.pwrite(fd, data, at)
        os.ftruncate(fd, size)
    return path


def add(writer: DataFileWriter, path: Path) -> tuple[int, int]:
    """Put a file's content into the data file."""
    with support.opened(path) as fd:
        return writer.add(fd, path.stat().st_size)


def copy_back(directory: int, place: tuple[int, int], path: Path, size: int) -> None:
    """Give a new file a content of the data file."""
    data = datafile.open_data(directory)
    try:
        reader = DataFileReader(data)
        reader.check(*place, size)
        with support.opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
            reader.copy(*place, fd, size)
    finally:
        os.close(data)


@pytest.mark.parametrize(
    ("pieces", "size"),
    [
        ([], 0),
        ([], 1),
        ([], 3 * MIB + 5),
        ([(0, b"x")], 1),
        ([(0, b"content")], 7),
        ([(0, b"head"), (MIB, b"tail")], MIB + 4),
        ([(0, b"head"), (MIB, b"middle")], 3 * MIB + 1),
        ([(5 * BLOCK, b"block" * 1000)], 9 * BLOCK),
        ([(0, bytes(BLOCK))], BLOCK),
        ([(0, os.urandom(5 * MIB))], 5 * MIB),
        ([(1 << 40, b"far")], (1 << 40) + 10),
    ],
    ids=lambda value: f"{len(value)} pieces" if isinstance(value, list) else None,
)
def test_round_trip(directory: int, tmp_path: Path, pieces: Pieces, size: int) -> None:
    path = make(tmp_path / "old", pieces, size)
    place = add(DataFileWriter(directory), path)
    copy_back(directory, place, tmp_path / "new", size)
    new = (tmp_path / "new").stat()
    assert new.st_size == size
    assert new.st_blocks <= path.stat().st_blocks, "a hole was filled"
    with support.opened(tmp_path / "new") as fd:
        for at, data in pieces:
            assert os.pread(fd, len(data), at) == data
        end = max((at + len(data) for at, data in pieces), default=0)
        assert os.pread(fd, MIB, end).strip(b"\0") == b""


@given(data=st.data())
def test_any_content(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Several files, with data and holes anywhere: each gets back its own."""
    path = tmp_path_factory.mktemp("contents")
    place = st.tuples(st.integers(0, 20 * BLOCK), st.binary(min_size=1, max_size=50))
    files = data.draw(st.lists(st.tuples(st.lists(place, max_size=4), st.integers(0, 25 * BLOCK))))
    with support.opened(path) as directory:
        writer = DataFileWriter(directory)
        places = []
        for number, (pieces, size) in enumerate(files):
            places.append(add(writer, make(path / f"old{number}", pieces, size)))
        for number, (_, size) in enumerate(files):
            copy_back(directory, places[number], path / f"new{number}", size)
            assert (path / f"new{number}").read_bytes() == (path / f"old{number}").read_bytes()


@pytest.mark.parametrize("shared", [0, 3, 100], ids=lambda blocks: f"{blocks} blocks")
def test_shared_data(
    directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: int
) -> None:
    """What the kernel does not share is read and written, in steps of less than the whole."""
    left = [shared]
    share = os.copy_file_range

    def some(source: int, target: int, count: int, source_at: int, target_at: int) -> int:
        if not left[0]:
            raise OSError(errno.EXDEV, "not here")
        left[0] -= 1
        return share(source, target, min(count, BLOCK), source_at, target_at)

    monkeypatch.setattr(os, "copy_file_range", some)
    monkeypatch.setattr(copying, "_may_share", lambda *_: True)
    monkeypatch.setattr(copying, "BUFFER", memoryview(bytearray(BLOCK)))
    data = os.urandom(10 * BLOCK + 17)
    place = add(DataFileWriter(directory), make(tmp_path / "old", [(0, data)], len(data)))
    copy_back(directory, place, tmp_path / "new", len(data))
    assert (tmp_path / "new").read_bytes() == data
    assert left[0] == max(0, shared - 22)


def test_small_and_large_contents(directory: int, tmp_path: Path) -> None:
    """What fits the buffer with its head, and what does not."""
    writer = DataFileWriter(directory)
    room = len(copying.BUFFER) - 16
    for size in (room - 1, room, room + 1, room + 16, room + 17):
        data = os.urandom(size)
        place = add(writer, make(tmp_path / f"old{size}", [(0, data)], size))
        copy_back(directory, place, tmp_path / f"new{size}", size)
        assert (tmp_path / f"new{size}").read_bytes() == data


def test_layout(directory: int, tmp_path: Path) -> None:
    """As docs/image-format.md has it."""
    writer = DataFileWriter(directory)
    assert not (tmp_path / NAME).exists()
    first = add(writer, make(tmp_path / "first", [(0, b"content")], 7))
    second = add(writer, make(tmp_path / "second", [(2 * BLOCK, b"x" * 10)], 2 * BLOCK + 10))
    written = (tmp_path / NAME).read_bytes()
    assert written[:8] == b"\x19\x43\x56\x54" + b"DDTD"
    number = int.to_bytes
    assert written[8:] == (
        number(0, 8, "little")
        + number(7, 8, "little")
        + b"content"
        + number(2 * BLOCK, 8, "little")
        + number(10, 8, "little")
        + b"x" * 10
    )
    assert (first, second) == ((8, 23), (31, 26))


def test_mode_and_owner(directory: int, tmp_path: Path) -> None:
    add(DataFileWriter(directory), make(tmp_path / "old", [(0, b"secret")], 6))
    found = (tmp_path / NAME).stat()
    assert found.st_mode & 0o777 == 0o600
    assert found.st_uid == os.geteuid()


@pytest.mark.parametrize("kind", ["file", "symlink"])
def test_existing_file_is_left(directory: int, tmp_path: Path, kind: str) -> None:
    path = make(tmp_path / "old", [(0, b"content")], 7)
    if kind == "file":
        (tmp_path / NAME).write_text("somebody's")
    else:
        (tmp_path / NAME).symlink_to("elsewhere")
    with pytest.raises(DetachedError, match=f"can't create {NAME}"):
        add(DataFileWriter(directory), path)
    assert not (tmp_path / "elsewhere").exists()
    assert kind == "symlink" or (tmp_path / NAME).read_text() == "somebody's"


def test_full_filesystem(tmpfs: Path, tmp_path: Path) -> None:
    """The dump fails while it can."""
    path = make(tmp_path / "old", [(0, os.urandom(64 << 10))], 64 << 10)
    with support.opened(tmpfs) as directory, pytest.raises(DetachedError) as error:
        add(DataFileWriter(directory), path)
    assert str(error.value) == f"can't write {NAME}: No space left on device"


def test_full_filesystem_at_restore(directory: int, tmpfs: Path, tmp_path: Path) -> None:
    path = make(tmp_path / "old", [(0, os.urandom(64 << 10))], 64 << 10)
    place = add(DataFileWriter(directory), path)
    with pytest.raises(OSError, match="No space left"):
        copy_back(directory, place, tmpfs / "new", 64 << 10)


def test_file_that_becomes_shorter(
    directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "data_of", lambda fd, size: iter([(0, 8)]))
    with pytest.raises(OSError, match="shorter"):
        add(DataFileWriter(directory), make(tmp_path / "old", [(0, b"content")], 7))


def test_missing(directory: int) -> None:
    with pytest.raises(DetachedError, match=f"can't open {NAME} .*: copy the whole directory"):
        datafile.open_data(directory)


def test_symlink(directory: int, tmp_path: Path) -> None:
    add(DataFileWriter(directory), make(tmp_path / "old", [(0, b"content")], 7))
    (tmp_path / NAME).rename(tmp_path / "other")
    (tmp_path / NAME).symlink_to("other")
    with pytest.raises(DetachedError, match=f"can't open {NAME}"):
        datafile.open_data(directory)


def test_fifo(directory: int, tmp_path: Path) -> None:
    """Of an edited archive; to open it must not wait for a writer."""
    os.mkfifo(tmp_path / NAME)
    with pytest.raises(DetachedError, match=f"{NAME} is no regular file"):
        datafile.open_data(directory)


class Damaged:
    """A data file with any extents."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.magics = b"\x19\x43\x56\x54DDTD"

    def write(self, *extents: tuple[int, int, bytes]) -> int:
        """Write extents as one content; returns its size."""
        text = b"".join(
            offset.to_bytes(8, "little") + length.to_bytes(8, "little") + data
            for offset, length, data in extents
        )
        self.path.write_bytes(self.magics + text)
        return len(text)

    def check(self, at: int, size: int, file_size: int) -> None:
        """As a restore does before there are tasks, and as it does in one; both must agree."""
        target = self.path.parent / "target"
        with support.opened(self.path) as fd:
            reader = DataFileReader(fd)
            try:
                reader.check(at, size, file_size)
            except DetachedError:
                flags = os.O_RDWR | os.O_CREAT
                with support.opened(target, flags) as file, pytest.raises((DetachedError, OSError)):
                    reader.copy(at, size, file, file_size)
                raise


@pytest.fixture
def damaged(tmp_path: Path) -> Damaged:
    """A place for one."""
    return Damaged(tmp_path / NAME)


HUGE = (1 << 64) - 1


@pytest.mark.parametrize(
    ("extents", "file_size"),
    [
        ([(0, 5, b"data!"), (4, 1, b"x")], 10),  # overlaps the one before
        ([(5, 2, b"xx"), (0, 2, b"xx")], 10),  # goes back
        ([(6, 5, b"data!")], 10),  # over the end of the file
        ([(10, 1, b"x")], 10),
        ([(0, 0, b"")], 10),  # nothing in it
        ([(0, 6, b"data!")], 10),  # longer than the content
        ([(0, HUGE, b"data!")], 10),
        ([(HUGE, 1, b"x")], 10),
        ([(HUGE, HUGE, b"x")], (1 << 63) - 1),
        ([(0, 5, b"data!12345678")], 100),  # a cut head
        ([(0, 5, b"data!")], 0),
    ],
)
def test_extents_that_no_dump_writes(
    damaged: Damaged, extents: list[tuple[int, int, bytes]], file_size: int
) -> None:
    size = damaged.write(*extents)
    with pytest.raises(DetachedError, match=f"{NAME} is damaged .*an extent"):
        damaged.check(8, size, file_size)


@pytest.mark.parametrize(
    ("at", "size"), [(0, 21), (7, 21), (8, 22), (29, 1), (1 << 61, 5), (8, 1 << 61), (HUGE, HUGE)]
)
def test_content_outside_of_the_data_file(damaged: Damaged, at: int, size: int) -> None:
    damaged.write((0, 5, b"data!"))
    with pytest.raises(DetachedError, match=f"{NAME} is damaged .*outside"):
        damaged.check(at, size, 10)


def test_every_cut(directory: int, tmp_path: Path) -> None:
    old = make(tmp_path / "old", [(0, b"content"), (2 * BLOCK, b"tail")], 3 * BLOCK)
    at, size = add(DataFileWriter(directory), old)
    written = (tmp_path / NAME).read_bytes()
    for length in [*range(200), *range(len(written) - 200, len(written))]:
        (tmp_path / NAME).write_bytes(written[:length])
        with support.opened(tmp_path / NAME) as fd, pytest.raises(DetachedError, match="damaged"):
            DataFileReader(fd).check(at, size, 3 * BLOCK)


@pytest.mark.parametrize("start", [b"", b"\x19\x43\x56\x54", bytes(8), b"\x19\x43\x56\x541MTD"])
def test_other_magic(damaged: Damaged, start: bytes) -> None:
    damaged.path.write_bytes(start)
    with support.opened(damaged.path) as fd, pytest.raises(DetachedError, match="magic"):
        DataFileReader(fd)


@given(data=st.data())
def test_any_extents(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Random bytes are a content or raise DetachedError, nothing else."""
    damaged = Damaged(tmp_path_factory.mktemp("damaged") / NAME)
    number = st.integers(0, 30) | st.integers(0, HUGE)
    extents = data.draw(st.lists(st.tuples(number, number, st.binary(max_size=20)), max_size=3))
    size = damaged.write(*extents)
    at = data.draw(st.just(8) | number)
    try:
        damaged.check(at, data.draw(st.just(size) | number), data.draw(st.integers(0, 40)))
    except DetachedError as error:
        assert NAME in str(error)  # noqa: PT017
