# SPDX-License-Identifier: GPL-2.0-only
"""Questions that may never be answered, asked by a child.

A filesystem may be served by a process or a machine that does not answer any more. Whoever asks it
something hangs, perhaps so that nothing ends him.
"""

from __future__ import annotations

import os

from criu_detached._kernel import lib
from criu_detached.kernel.calls import checked
from criu_detached.kernel.fds import Fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Question = Callable[[], bytes]

_TENTHS = 10  # of a second
_HEADER = 8  # bytes before an answer: its size, and an errno
_NO_ERRNO = 0xFFFF  # of an error that has none


class Answer:
    """What came of a question: bytes, an error, or nothing in time."""

    __slots__ = ("_data", "error", "in_time")

    def __init__(self, data: bytes = b"", error: OSError | None = None, *, in_time: bool = True):
        self._data = data
        self.error = error
        self.in_time = in_time

    @property
    def data(self) -> bytes:
        """What was answered; raises OSError where there is an error, or nothing."""
        if not self.in_time:
            raise TimeoutError("no answer")
        if self.error is not None:
            raise self.error
        return self._data


def ask_each(questions: Sequence[Question], patience: float = 3.0) -> list[Answer]:
    """Ask questions one after another, without waiting for ever.

    Args:
        questions: each returns bytes, or raises OSError. They are called in a child with a copy of
            the memory, and none of this process's fds.
        patience: seconds to wait for the first that does not answer; there is less for others.

    Returns:
        An answer to each of them.

    Raises:
        OSError: there can be no child.
    """
    answers: list[Answer] = []
    while len(answers) < len(questions):
        answers += _ask(questions[len(answers) :], int(patience * _TENTHS))
        if not answers[-1].in_time:
            patience = min(patience, 0.5)
    return answers


def _ask(questions: Sequence[Question], tenths: int) -> list[Answer]:
    """Ask up to the first that is not answered, which comes last; or all."""
    reader, writer = map(Fd, os.pipe())
    with reader:
        with writer:
            pid = checked(lib.sys_child_that_may_hang(writer), "clone")
            if not pid:
                _be_child(questions, writer)
        answers: list[Answer] = []
        while len(answers) < len(questions):
            answer = _receive(reader, tenths)
            answers.append(answer)
            if not answer.in_time:
                lib.sys_child_give_up(pid)
                return answers
            if answer.error is not None and answer.error.errno is None:
                break
        lib.sys_child_give_up(pid)
    return answers


def _receive(reader: int, tenths: int) -> Answer:
    header = _read(reader, _HEADER, tenths)
    if header is None:
        return Answer(in_time=False)
    if len(header) < _HEADER:
        return Answer(error=OSError("the child that asks has died"))
    size, number = int.from_bytes(header[:4], "little"), int.from_bytes(header[4:], "little")
    data = _read(reader, size, tenths)
    if data is None or len(data) < size:
        return Answer(error=OSError("the child that asks has died"))
    if not number:
        return Answer(data)
    text = data.decode("ascii", "replace")
    return Answer(error=OSError(text) if number == _NO_ERRNO else OSError(number, text))


def _read(reader: int, size: int, tenths: int) -> bytes | None:
    """So many bytes, or less at the end; None: they do not come."""
    data = b""
    while len(data) < size:
        if not lib.sys_await_input(reader, tenths):
            return None
        piece = os.read(reader, size - len(data))
        if not piece:
            break
        data += piece
    return data


def _be_child(questions: Sequence[Question], writer: int) -> None:
    """Answer, and end."""
    try:
        for question in questions:
            number, data = _answer(question)
            header = len(data).to_bytes(4, "little") + number.to_bytes(4, "little")
            _write(writer, header + data)
    finally:
        os._exit(0)


def _answer(question: Question) -> tuple[int, bytes]:
    try:
        return 0, question()
    except OSError as error:
        text = str(error.strerror or error)
        return error.errno or _NO_ERRNO, text.encode("ascii", "replace")
    except BaseException as error:  # whatever it is, it must not leave the child
        line = error.__traceback__.tb_lineno if error.__traceback__ else 0
        text = f"{type(error).__name__}: {error} ({line})"
        return _NO_ERRNO, text.encode("ascii", "replace")


def _write(writer: int, data: bytes) -> None:
    while data:
        data = data[os.write(writer, data) :]
