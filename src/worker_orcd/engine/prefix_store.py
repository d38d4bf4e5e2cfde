"""Computed prefixes in host memory: more than the pool of KV cells can keep, and they outlive the engine.

The store is an anonymous memory file that the front creates and passes to each engine it starts. An engine can be
killed at any moment, also in the middle of a write. So the file is written like a journal: first an entry's data, then
its record, then the record's commit mark, which is removed before the space is reused. Each entry has a checksum, which
is compared before the entry is used. Incomplete and damaged entries are dropped and never used.

The engine's loop writes and reads entries. A thread commits them: it computes the checksums, and has the kernel prepare
memory for later entries. Each of these takes as long as the writing.

The file consists of a header, `RECORDS` records, and the data. An entry's data are its token ids, followed by the
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
"""Commit mark, offset, tokens, bytes of the state, namespace, checksum, and time of last use."""
_MARK = struct.Struct("<Q")
_COMMITTED = 0x9E3779B97F4A7C15
_PAGE = mmap.PAGESIZE
_DATA = _PAGE + -(-RECORDS * _RECORD.size // _PAGE) * _PAGE
"""Offset of the data."""
_TOKEN_BYTES = 4
_AHEAD = 32 * 2**20
"""Number of bytes after the last entry whose memory is prepared in advance."""
_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE."""
_libc = ctypes.CDLL(None)


@dataclass(slots=True, eq=False)
class Entry:
    """A prefix in the store.

    Attributes:
        record: index of the entry's record.
        offset: where the data begin, in bytes.
        tokens: number of tokens.
        state_bytes: size of the state.
        namespace: digest of the namespace.
        replaces: entries to drop once this one is committed.
        committed: whether an engine that opens the file finds the entry.
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
        """Size of the data."""
        return self.tokens * _TOKEN_BYTES + self.state_bytes

    @property
    def size(self) -> int:
        """Bytes in the file: whole pages."""
        return -(-self.bytes // _PAGE) * _PAGE


class PrefixStore:
    """The store in one memory file. Least recently used entries make room for new ones."""

    def __init__(self, fd: int, fingerprint: bytes, *, own_thread: bool = False) -> None:
        """Open the file, and take over the entries of earlier engines.

        Args:
            fd: the file. Its size is the store's size.
            fingerprint: of the model and the way it is computed. Entries with another fingerprint are dropped, because
                this engine cannot use them.
            own_thread: whether a separate thread commits entries soon after `put`, instead of `put` itself.

        Raises:
            ValueError: the file is too small for any entry.
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
        """Total size of the entries."""
        header = _HEADER.pack(_MAGIC, blake2b(fingerprint, digest_size=32).digest())
        if self._bytes[: _HEADER.size] != header:
            self._bytes[_PAGE:_DATA] = bytes(_DATA - _PAGE)
            self._bytes[: _HEADER.size] = header
        self._prepared = 0
        """The thread has prepared the memory of the file's pages up to here."""
        self._lock = threading.Lock()
        """Protects the records, and `_entries` where the thread reads it."""
        self._recover()
        self._written: SimpleQueue[Entry] = SimpleQueue()
        self._committed: SimpleQueue[Entry] = SimpleQueue()
        self._own_thread = own_thread
        if own_thread:
            threading.Thread(target=self._commit_all, name="prefix-store", daemon=True).start()

    @property
    def capacity(self) -> int:
        """Space for entries, in bytes."""
        return (self._size - _DATA) // _PAGE * _PAGE

    @property
    def entries(self) -> list[Entry]:
        """Least recently used first."""
        return list(self._entries)

    def __len__(self) -> int:
        """Entries."""
        return len(self._entries)

    def faults(self) -> list[str]:
        """Descriptions of the damaged entries found since the last call. They are already dropped."""
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
            namespace: the namespace of the prefix.
            tokens: the prefix.
            state_bytes: size of the state.
            write: writes the state into a buffer of that size, and returns how many bytes it wrote.

        Returns:
            The entry; None if the store is too small for it, or the state was not written completely.
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
        """Make an entry visible to later engines, then drop the entries that it replaces."""
        entry.replaces = replaces
        if self._own_thread:
            self._written.put(entry)
        else:
            self._commit(entry)
            self.settle()

    def settle(self) -> None:
        """Drop the entries that committed entries have replaced."""
        while not self._committed.empty():
            entry = self._committed.get()
            for replaced in entry.replaces:
                self.drop(replaced)
            entry.replaces = ()

    def state(self, entry: Entry) -> memoryview | None:
        """The state of an entry, which counts as used now. A damaged entry is dropped and returns None."""
        if entry.committed and self._stored_checksum(entry) != self._checksum(entry):
            self.reject(entry)
            return None
        self._touch(entry)
        return self._data(entry)[entry.tokens * _TOKEN_BYTES :]

    def begun_by(self, entry: Entry) -> list[Entry]:
        """The other entries of the namespace whose tokens are a prefix of this entry's."""
        namespace = entry.namespace.hex()
        return [
            other
            for other in self._entries
            if other is not entry
            and other.namespace == entry.namespace
            and self._index.begins_with(namespace, entry, other)
        ]

    def reject(self, entry: Entry) -> None:
        """Drop an entry that was found to be damaged."""
        self._faults.append(f"a stored prefix of {entry.tokens} tokens is damaged and was dropped")
        self.drop(entry)

    def drop(self, entry: Entry) -> None:
        """Remove an entry. Harmless if it is already removed."""
        if entry in self._entries:
            with self._lock:
                del self._entries[entry]
                _MARK.pack_into(self._bytes, _place(entry.record), 0)
            self.used -= entry.size
            self._index.remove(entry.namespace.hex(), entry)

    def __contains__(self, entry: Entry) -> bool:
        """Whether the entry is still in the store."""
        return entry in self._entries

    # Internals.

    def _recover(self) -> None:
        """Read the committed entries, least recently used first. Malformed records are dropped."""
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
        self._faults.append(f"record {record} of the stored prefixes is damaged and was dropped")
        _MARK.pack_into(self._bytes, _place(record), 0)

    def _make_room(self, entry: Entry) -> None:
        """Find a record and space for the entry. Drops other entries if necessary."""
        while (offset := self._gap(entry.size)) is None or len(self._entries) >= RECORDS:
            self.drop(next(iter(self._entries)))
        used = {other.record for other in self._entries}
        entry.record = next(record for record in range(RECORDS) if record not in used)
        entry.offset = offset

    def _gap(self, size: int) -> int | None:
        """The lowest offset with this many free bytes. Its memory is the most likely to be prepared."""
        end = _DATA
        for entry in sorted(self._entries, key=lambda other: other.offset):
            if entry.offset - end >= size:
                return end
            end = entry.offset + entry.size
        return end if self._size - end >= size else None

    def _commit_all(self) -> None:
        """Commit written entries as they come. The thread's main function."""
        while True:
            self._commit(self._written.get())
            self._prepare_memory()

    def _commit(self, entry: Entry) -> None:
        """Write the record, unless the entry was dropped meanwhile; then its space may belong to another entry."""
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
        """Have the kernel allocate the file's next pages, which takes longer than writing them."""
        with self._lock:
            end = max((entry.offset + entry.size for entry in self._entries), default=_DATA)
        end = min(end + _AHEAD, self._size)
        if end > self._prepared:
            address = ctypes.addressof(ctypes.c_char.from_buffer(self._file, self._prepared))
            # Older kernels refuse this; then the pages are allocated when they are written.
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
