"""A client of redis-server, and the load that it makes."""

from __future__ import annotations

import signal
import socket
import threading
from typing import Self

Reply = str | int | list["Reply"] | None

TIMEOUT = 60.0  # seconds; a hang fails the demo, a slow machine does not


class Redis:
    """One connection. Redis' protocol: a command is an array of strings, a reply tells its type."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        self._stream = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._socket.close()

    def __call__(self, *words: str) -> Reply:
        """Have a command carried out; an OSError when the connection broke before the reply."""
        parts = [f"*{len(words)}", *(f"${len(word)}\r\n{word}" for word in words), ""]
        self._socket.sendall("\r\n".join(parts).encode())
        return self._reply()

    def _reply(self) -> Reply:
        line = self._stream.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionResetError("the server has closed the connection")
        kind, text = line[:1], line[1:-2].decode()
        if kind == b"+":
            return text
        if kind == b":":
            return int(text)
        if kind == b"$":
            size = int(text)
            return None if size < 0 else self._stream.read(size + 2)[:-2].decode()
        if kind == b"*":
            return [self._reply() for _ in range(int(text))]
        raise ValueError(f"redis-server answers {text}")


class Load(threading.Thread):
    """Writes key after key; what was not acknowledged is written anew on a new connection."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._progress = threading.Condition()
        self._stop_asked = threading.Event()
        self.acknowledged = 0
        self.connections = 0

    def start(self) -> None:
        """Begin, with all signals left to the main thread, which waits for some."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        super().start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def run(self) -> None:
        """Connect again and again, until it is asked to stop."""
        while not self._stop_asked.wait(0.001):
            try:
                with Redis(self._port) as redis:
                    self.connections += 1
                    self._write(redis)
            except OSError:
                continue  # the server is away

    def _write(self, redis: Redis) -> None:
        while not self._stop_asked.is_set():
            assert redis("SET", *entry(self.acknowledged)) == "OK"
            with self._progress:
                self.acknowledged += 1
                self._progress.notify()

    def wait_for(self, more: int) -> None:
        """Wait until so many more writes are acknowledged."""
        with self._progress:
            goal = self.acknowledged + more
            came = self._progress.wait_for(lambda: self.acknowledged >= goal, TIMEOUT)
        assert came, f"{self.acknowledged} writes were acknowledged, and then no more"

    def stop(self) -> int:
        """End; returns how many writes were acknowledged."""
        self._stop_asked.set()
        self.join()
        return self.acknowledged


def answers(port: int) -> bool:
    """Whether a server is there, and has read its data."""
    try:
        with Redis(port) as redis:
            return redis("PING") == "PONG"
    except (OSError, ValueError):
        return False  # not yet, or it says that it is loading


def entry(number: int) -> tuple[str, str]:
    """The key and the value of one write."""
    return f"key:{number}", f"value {number}"


def count_kept(port: int, acknowledged: int) -> int:
    """How many of the acknowledged writes the server has, with the value that was written."""
    written = [entry(number) for number in range(acknowledged)]
    with Redis(port) as redis:
        values = redis("MGET", *(key for key, _ in written))
    assert isinstance(values, list)
    return sum(found == value for found, (_, value) in zip(values, written, strict=True))
