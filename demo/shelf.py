"""What visitors bring and what is trained here: folders under secret names, bounded, deleted in the end."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dit_heads.errors import InputError


@dataclass(frozen=True)
class Entry:
    """A folder of a shelf.

    Attributes:
        id: a secret of whoever brought it.
        folder: where it is.
        owner: the session that brought it; None if it outlives sessions.
        about: what is known of it.
        size: bytes of its files.
    """

    id: str
    folder: Path
    owner: str | None
    about: Any
    size: int


class Shelf:
    """Folders by their ids. The ones that were asked for least recently make room for new ones.

    Args:
        what: it is called in messages.
        count: the most folders.
        size: the most bytes, of all of them together.
        seconds: how long a folder stays that nobody asks for.
    """

    def __init__(self, what: str, count: int, size: int, seconds: float = 6 * 3600) -> None:
        self.what, self.count, self.size, self.seconds = what, count, size, seconds
        self._root = Path(tempfile.mkdtemp(prefix="dit-heads-shelf-"))
        weakref.finalize(self, shutil.rmtree, self._root, ignore_errors=True)
        self._entries: OrderedDict[str, tuple[Entry, float]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, fill: Callable[[Path], Any], owner: str | None = None) -> Entry:
        """Add a folder.

        Args:
            fill: writes into an empty folder, and returns what is known of it. After an error it is deleted.
            owner: the session that brings it.

        Raises:
            InputError: if it alone is too large.
        """
        key = secrets.token_urlsafe(16)
        folder = self._root / key
        folder.mkdir()
        try:
            about = fill(folder)
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            if size > self.size:
                raise InputError(f"{self.what}: expected at most {self.size / 2**20:.0f} MB")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        entry = Entry(key, folder, owner, about, size)
        with self._lock:
            self._entries[key] = entry, time.monotonic()
            self._make_room()
        return entry

    def get(self, key: object) -> Entry:
        """The folder of an id. Raises InputError for one that is not there, or not any more."""
        with self._lock:
            entry, _ = self._entries.get(key if isinstance(key, str) else "", (None, 0.0))
            if entry is None:
                raise InputError(f"{self.what}: not here any more; please bring it again")
            self._entries[entry.id] = entry, time.monotonic()
            self._entries.move_to_end(entry.id)
            return entry

    def entrust(self, key: str) -> None:
        """Keep a folder after its session, as a job needs it."""
        with self._lock:
            if key in self._entries:
                entry, used = self._entries[key]
                self._entries[key] = replace(entry, owner=None), used

    def leave(self, owner: str | None) -> None:
        """Delete all folders of a session."""
        with self._lock:
            theirs = [e.id for e, _ in self._entries.values() if owner is not None and e.owner == owner]
            for key in theirs:
                self._drop(key)
            self._make_room()

    def __len__(self) -> int:
        return len(self._entries)

    def _make_room(self) -> None:
        now = time.monotonic()
        for entry, used in list(self._entries.values()):
            total = sum(other.size for other, _ in self._entries.values())
            if len(self._entries) > self.count or total > self.size or now - used > self.seconds:
                self._drop(entry.id)

    def _drop(self, key: str) -> None:
        entry, _ = self._entries.pop(key, (None, 0.0))
        if entry is not None:
            shutil.rmtree(entry.folder, ignore_errors=True)
