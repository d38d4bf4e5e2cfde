"""Computed prefixes in host memory: more of them than the pool of KV cells may keep, and they outlive the engine.

The store is an anonymous memory file that the front makes and hands to each engine it starts. An engine can be killed
at any moment, also in the middle of a write. So the file is written like a journal: an entry's data first, then its
record, then the record's commit mark, which is removed before the place is used again. Each entry has a checksum, which
is compared before the entry is used. What is torn or damaged is dropped, and never used.

The engine's loop writes and reads. A thread commits: it computes the checksums, and has the kernel prepare memory for
the entries to come. Both take as long as the writing.

The file: a header, then `RECORDS` records, then the data. An entry's data are its token ids and, behind them, the
memory of its sequence as the model wrote it.
"""

import ctypes
import mmap
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from queue import SimpleQueue

import numpy as np
import xxhash

from worker_orcd.engine.prefixes import Match, PrefixIndex, TokenArray, Tokens, as_tokens

RECORDS = 1024
"""Most entries."""
_MAGIC = b"wo-pfx-1"
_HEADER = struct.Struct("<8s32s")
_RECORD = struct.Struct("<QQQQ16sQQ")
"""Commit mark, offset, tokens, bytes of the state, namespace, checksum, and when it was used last."""
_MARK = struct.Struct("<Q")
_COMMITTED = 0x9E3779B97F4A7C15
_PAGE = mmap.PAGESIZE
_DATA = _PAGE + -(-RECORDS * _RECORD.size // _PAGE) * _PAGE
"""Where the data begin."""
_TOKEN_BYTES = 4
_AHEAD = 32 * 2**20
"""Bytes behind the last entry whose memory is prepared."""
_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE."""
_libc = ctypes.CDLL(None)


@dataclass(slots=True, eq=False)
class Entry:
    """A prefix in the store.

    Attributes:
        record: which record is its own.
        offset: where its data begin, in bytes.
        tokens: how many tokens it has.
        state_bytes: how long its state is.
        namespace: whose prefix it is, as the store keeps it: a digest.
        replaces: entries that are dropped once this one is committed.
        committed: whether an engine that opens the file finds it.
    """

    record: int
    offset: int
    tokens: int
    state_bytes: int
    namespace: bytes
    replaces: tuple["Entry", ...] = ()
    committed: bool = False

    @property
    def bytes(self) -> int:
        """How long its data are."""
        return self.tokens * _TOKEN_BYTES + self.state_bytes

    @property
    def size(self) -> int:
        """Bytes that it takes in the file: whole pages."""
        return -(-self.bytes // _PAGE) * _PAGE


class PrefixStore:
    """The store in one memory file. Least recently used entries make room for new ones."""

    def __init__(self, fd: int, fingerprint: bytes, *, own_thread: bool = False) -> None:
        """Open it, and find what an earlier engine has left.

        Args:
            fd: the file. Its size is the store's.
            fingerprint: of the model and of how it is computed. Entries with another fingerprint are dropped: they
                mean nothing to this engine.
            own_thread: whether entries are committed by a thread of its own, soon, and not by `put`.

        Raises:
            ValueError: the file is too small to hold anything.
        """
        self._size = os.fstat(fd).st_size
        if self._size <= _DATA:
            raise ValueError(f"a store of {self._size} bytes has no room for data")
        self._file = mmap.mmap(fd, self._size)
        self._bytes = memoryview(self._file)
        self._entries: OrderedDict[Entry, None] = OrderedDict()
        """Least recently used first."""
        self._index: PrefixIndex[Entry] = PrefixIndex()
        self._faults: list[str] = []
        self._uses = 0
        self.used = 0
        """Bytes of entries."""
        header = _HEADER.pack(_MAGIC, blake2b(fingerprint, digest_size=32).digest())
        if self._bytes[: _HEADER.size] != header:
            self._bytes[_PAGE:_DATA] = bytes(_DATA - _PAGE)
            self._bytes[: _HEADER.size] = header
        self._prepared = 0
        """Up to here the file's pages have memory, as far as the thread knows."""
        self._lock = threading.Lock()
        """Held to change records, and `_entries` where the thread reads it."""
        self._recover()
        self._written: SimpleQueue[Entry] = SimpleQueue()
        self._committed: SimpleQueue[Entry] = SimpleQueue()
        self._own_thread = own_thread
        if own_thread:
            threading.Thread(target=self._commit_all, name="prefix-store", daemon=True).start()

    @property
    def capacity(self) -> int:
        """Bytes for entries."""
        return (self._size - _DATA) // _PAGE * _PAGE

    @property
    def entries(self) -> list[Entry]:
        """Least recently used first."""
        return list(self._entries)

    def __len__(self) -> int:
        """Entries."""
        return len(self._entries)

    def faults(self) -> list[str]:
        """What was found damaged since the last call. It is dropped already."""
        faults, self._faults = self._faults, []
        return faults

    def longest(
        self, namespace: str, tokens: Tokens, usable: Callable[[Entry, int], int]
    ) -> Match[Entry] | None:
        """As `PrefixIndex.longest`."""
        return self._index.longest(_digest(namespace).hex(), tokens, usable)

    def put(
        self,
        namespace: str,
        tokens: Tokens,
        state_bytes: int,
        write: Callable[[memoryview], int],
    ) -> Entry | None:
        """Add an entry.

        Args:
            namespace: whose it is.
            tokens: the prefix.
            state_bytes: how long its state is.
            write: writes the state into so many bytes and returns how many it wrote.

        Returns:
            The entry; None if the store is too small for it or the state was not written whole.
        """
        held = as_tokens(tokens)
        entry = Entry(0, 0, len(held), state_bytes, _digest(namespace))
        if entry.size > self.capacity:
            return None
        self._make_room(entry)
        data = self._data(entry)
        split = entry.tokens * _TOKEN_BYTES
        data[:split] = held.tobytes()
        if write(data[split:]) != state_bytes:
            return None
        self._enter(entry, held)
        return entry

    def commit(self, entry: Entry, replaces: tuple[Entry, ...] = ()) -> None:
        """Make an entry visible to later engines, and then drop those that it replaces."""
        entry.replaces = replaces
        if self._own_thread:
            self._written.put(entry)
        else:
            self._commit(entry)
            self.settle()

    def settle(self) -> None:
        """Drop what committed entries have replaced."""
        while not self._committed.empty():
            entry = self._committed.get()
            for replaced in entry.replaces:
                self.drop(replaced)
            entry.replaces = ()

    def state(self, entry: Entry) -> memoryview | None:
        """The state of an entry, which counts as used now; None if it is damaged. Then it is dropped."""
        if entry.committed and self._stored_checksum(entry) != self._checksum(entry):
            self.reject(entry)
            return None
        self._touch(entry)
        return self._data(entry)[entry.tokens * _TOKEN_BYTES :]

    def begun_by(self, entry: Entry) -> list[Entry]:
        """The entries of the same namespace with whose tokens this one begins, without itself."""
        namespace = entry.namespace.hex()
        return [
            other
            for other in self._entries
            if other is not entry
            and other.namespace == entry.namespace
            and self._index.begins_with(namespace, entry, other)
        ]

    def reject(self, entry: Entry) -> None:
        """Drop an entry that turned out to be damaged."""
        self._faults.append(f"a stored prefix of {entry.tokens} tokens is damaged: it is not used")
        self.drop(entry)

    def drop(self, entry: Entry) -> None:
        """Remove an entry. Harmless if it is gone already."""
        if entry in self._entries:
            with self._lock:
                del self._entries[entry]
                _MARK.pack_into(self._bytes, _place(entry.record), 0)
            self.used -= entry.size
            self._index.remove(entry.namespace.hex(), entry)

    def __contains__(self, entry: Entry) -> bool:
        """Whether it is still there."""
        return entry in self._entries

    # Inside.

    def _recover(self) -> None:
        """Take over the committed entries, least recently used first. Malformed records are dropped."""
        found: list[tuple[int, Entry]] = []
        for record in range(RECORDS):
            mark, offset, tokens, state_bytes, namespace, _, used = _RECORD.unpack_from(
                self._bytes, _place(record)
            )
            if mark != _COMMITTED:
                continue
            entry = Entry(record, offset, tokens, state_bytes, namespace, committed=True)
            inside = _DATA <= offset <= offset + entry.size <= self._size
            if tokens > 0 and offset % _PAGE == 0 and inside:
                found.append((used, entry))
            else:
                self._reject(record)
        taken: list[Entry] = []
        for used, entry in sorted(found, key=lambda pair: pair[0]):
            if any(_overlap(entry, other) for other in taken):
                self._reject(entry.record)
                continue
            taken.append(entry)
            held = np.frombuffer(self._data(entry), np.int32, entry.tokens).copy()
            self._enter(entry, held)
            self._uses = max(self._uses, used)

    def _reject(self, record: int) -> None:
        self._faults.append(f"record {record} of the stored prefixes is damaged: it is not used")
        _MARK.pack_into(self._bytes, _place(record), 0)

    def _make_room(self, entry: Entry) -> None:
        """Give the entry a record and a place, for which others are dropped."""
        while (offset := self._gap(entry.size)) is None or len(self._entries) >= RECORDS:
            self.drop(next(iter(self._entries)))
        used = {other.record for other in self._entries}
        entry.record = next(record for record in range(RECORDS) if record not in used)
        entry.offset = offset

    def _gap(self, size: int) -> int | None:
        """The lowest place with so many free bytes, whose memory is most likely to be prepared already."""
        end = _DATA
        for entry in sorted(self._entries, key=lambda other: other.offset):
            if entry.offset - end >= size:
                return end
            end = entry.offset + entry.size
        return end if self._size - end >= size else None

    def _commit_all(self) -> None:
        """Commit what is written, as it comes."""
        while True:
            self._commit(self._written.get())
            self._prepare_memory()

    def _commit(self, entry: Entry) -> None:
        """Write the record, unless the entry was dropped meanwhile: then its place may belong to another entry."""
        checksum = self._checksum(entry)
        with self._lock:
            if entry not in self._entries:
                return
            self._uses += 1
            record = (entry.offset, entry.tokens, entry.state_bytes, entry.namespace, checksum, self._uses)
            _RECORD.pack_into(self._bytes, _place(entry.record), 0, *record)
            _MARK.pack_into(self._bytes, _place(entry.record), _COMMITTED)
            entry.committed = True
        self._committed.put(entry)

    def _prepare_memory(self) -> None:
        """Have the kernel give the file's next pages their memory, which takes longer than writing them."""
        with self._lock:
            end = max((entry.offset + entry.size for entry in self._entries), default=_DATA)
        end = min(end + _AHEAD, self._size)
        if end > self._prepared:
            address = ctypes.addressof(ctypes.c_char.from_buffer(self._file, self._prepared))
            # An older kernel refuses; then the pages come with the writing.
            _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(end - self._prepared), _POPULATE_WRITE)
            self._prepared = end // _PAGE * _PAGE

    def _enter(self, entry: Entry, tokens: TokenArray) -> None:
        with self._lock:
            self._entries[entry] = None
        self.used += entry.size
        self._index.put(entry.namespace.hex(), entry, tokens)

    def _touch(self, entry: Entry) -> None:
        with self._lock:
            self._uses += 1
            self._entries.move_to_end(entry)
        _MARK.pack_into(self._bytes, _place(entry.record) + _RECORD.size - _MARK.size, self._uses)

    def _checksum(self, entry: Entry) -> int:
        """The checksum of an entry's record and data."""
        what = struct.pack("<QQQ16s", entry.offset, entry.tokens, entry.state_bytes, entry.namespace)
        digest = xxhash.xxh3_64(what)
        digest.update(self._data(entry))
        return digest.intdigest()

    def _stored_checksum(self, entry: Entry) -> int:
        checksum: int = _RECORD.unpack_from(self._bytes, _place(entry.record))[5]
        return checksum

    def _data(self, entry: Entry) -> memoryview:
        return self._bytes[entry.offset : entry.offset + entry.bytes]


def _digest(namespace: str) -> bytes:
    return blake2b(namespace.encode(), digest_size=16).digest()


def _place(record: int) -> int:
    return _PAGE + record * _RECORD.size


def _overlap(one: Entry, other: Entry) -> bool:
    return one.offset < other.offset + other.size and other.offset < one.offset + one.size
