"""
The session's values, decoded at first read, and what has changed since.
"""

from __future__ import annotations

import marshal
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    ValuesView,
)
from types import MappingProxyType
from typing import Any, Final, cast

from twsessions.core.codec import decode, encode
from twsessions.errors import CorruptRecord, SessionTooLarge

__all__ = ["Data", "View", "withoutPrefix"]

# Of marshal there are dumps only, to be compared with each other: none is stored,
# sent or loaded. 2 is the last format that does not depend on who else has an object.
_EXACT: Final = 2
_EMPTY: Final[Mapping[str, bytes]] = MappingProxyType({})
_NO_KEYS: Final[frozenset[str]] = frozenset()
_HOLDERS: Final = frozenset((list, dict, set, tuple))  # what may be changed in place
_ABSENT: Final = object()
# Takes the place of the decoded value of bytes that cannot be decoded.
_CORRUPT: Final = object()


def _asGiven(key: str) -> str:
    return f"session[{key!r}]"


def withoutPrefix(key: str) -> str:
    """
    Name a flat key for people, when all keys carry a L{View}'s prefix: give
    this to L{Data} as C{describe}.

    @param key: the key with its one-character prefix.
    @return: such as C{session['cart']}.
    """
    return f"session[{key[1:]!r}]"


def _canChange(value: Any) -> bool:
    """
    Whether an allowed value can be changed in place. What is in a frozenset
    is hashable, so it cannot.
    """
    kind = type(value)
    return (
        kind is list
        or kind is dict
        or kind is set
        or (kind is tuple and any(map(_canChange, value)))
    )


class _Readable(MutableMapping[str, object]):
    """
    A mapping in which a key can turn out to be absent when it is read.
    """

    __slots__ = ()

    def items(self) -> ItemsView[str, object]:
        return _Items(self)

    def values(self) -> ValuesView[object]:
        return _Values(self)

    def popitem(self) -> tuple[str, object]:
        for item in self.items():
            del self[item[0]]
            return item
        raise KeyError("no values are left")


class _Items(ItemsView[str, object]):
    __slots__ = ()
    _mapping: Mapping[str, object]

    def __iter__(self) -> Iterator[tuple[str, object]]:
        for key in self._mapping:
            value = self._mapping.get(key, _ABSENT)
            if value is not _ABSENT:
                yield key, value


class _Values(ValuesView[object]):
    __slots__ = ()
    _mapping: Mapping[str, object]

    def __iter__(self) -> Iterator[object]:
        for _, value in _Items(self._mapping):
            yield value


class Data(_Readable):
    """
    A mapping of C{str} to storable values over their stored bytes.

    A value is encoded when it is assigned, so that an error shows where it
    was made, and one that can change in place is encoded again when changes
    are asked for. Bytes that cannot be decoded make their key absent from its
    first read on; they stay in the store unless something is put over them.
    """

    __slots__ = (
        "_assigned",
        "_base",
        "_changing",
        "_describe",
        "_known",
        "_maximum",
        "_offered",
        "_onCorrupt",
        "_owner",
        "_read",
    )

    # What is stored, as far as this process knows. Shared: never changed.
    _base: Mapping[str, bytes]
    # Bytes as of the assignment, None for a removed key; may equal the base.
    _assigned: dict[str, bytes | None] | None
    # The live objects: everything read so far, and everything assigned.
    _read: dict[str, object] | None
    # Those of them that can change in place: they have to be looked at.
    _changing: dict[str, Any]
    # What a value that can change was last encoded to, with a dump that is ten
    # times faster to make and the same as long as the value is.
    _known: dict[str, tuple[bytes, bytes]]
    # What changes() gave out and nobody has accepted yet: a commit under way.
    _offered: dict[str, bytes | None] | None

    def __init__(
        self,
        encoded: Mapping[str, bytes] = _EMPTY,
        *,
        maxValueBytes: int | None = None,
        onCorrupt: Callable[[object, str, CorruptRecord], object] | None = None,
        owner: object = None,
        describe: Callable[[str], str] = _asGiven,
    ) -> None:
        """
        @param encoded: the bytes of each stored key. Kept, never changed.
        @param maxValueBytes: how long one assigned value may be, encoded.
        @param onCorrupt: called with C{owner}, a key and the error when the
            key's bytes turn out not to be a value.
        @param owner: whatever that needs to know.
        @param describe: how error messages name a key.
        """
        self._base = encoded
        self._assigned = None
        self._read = None
        self._changing = {}
        self._known = {}
        self._offered = None
        self._maximum = maxValueBytes
        self._onCorrupt = onCorrupt
        self._owner = owner
        self._describe = describe

    def __repr__(self) -> str:
        # No values: a repr ends up in logs.
        return f"<{type(self).__name__} of {len(self)} keys>"

    # The mapping

    def __getitem__(self, key: str) -> object:
        read = self._read
        if read is not None:
            value = read.get(key, _ABSENT)
            if value is _CORRUPT:
                raise KeyError(key)
            if value is not _ABSENT:
                return value
        # What was assigned has been found above, so it can only be removed.
        if self._assigned is not None and key in self._assigned:
            raise KeyError(key)
        encoded = self._base[key]
        if read is None:
            read = self._read = {}
        try:
            value = read[key] = decode(encoded)
        except CorruptRecord as error:
            read[key] = _CORRUPT
            if self._onCorrupt is not None:
                self._onCorrupt(self._owner, key, error)
            raise KeyError(key) from None
        if type(value) in _HOLDERS and _canChange(value):
            self._changing[key] = value
            self._note(key, value, encoded)
        return value

    def _note(self, key: str, value: Any, encoded: bytes) -> None:
        try:
            self._known[key] = marshal.dumps(value, _EXACT), encoded
        except ValueError:
            pass  # a type it does not have: such values are encoded each time

    def _encode(self, key: str, value: Any) -> bytes:
        """
        L{encode} a value that may have changed.
        """
        known = self._known.get(key)
        if known is not None:
            try:
                if marshal.dumps(value, _EXACT) == known[0]:
                    return known[1]
            except ValueError:
                pass
        encoded = encode(value)
        self._note(key, value, encoded)
        return encoded

    def __setitem__(self, key: str, value: object) -> None:
        if type(key) is not str:
            raise TypeError(f"a session's keys are str, not {type(key).__name__}")
        self.assign(key, value, key, self._describe)

    def assign(
        self, key: str, value: object, name: str, describe: Callable[[str], str] = _asGiven
    ) -> None:
        """
        Assign to C{key}, which its user knows as C{name}.

        @raise TypeError, SessionTooLarge: it cannot be stored.
        """
        if not key.isascii():
            try:
                key.encode()
            except UnicodeEncodeError:
                raise TypeError(f"{describe(name)}: a key with lone surrogates") from None
        try:
            encoded = encode(value)
        except TypeError as error:
            raise TypeError(f"{describe(name)}: {error}") from None
        if self._maximum is not None and len(encoded) > self._maximum:
            raise SessionTooLarge(len(encoded), self._maximum, [(name, len(encoded))])
        if self._assigned is None:
            self._assigned = {}
        if self._read is None:
            self._read = {}
        self._assigned[key] = encoded
        self._read[key] = value
        if type(value) in _HOLDERS and _canChange(value):
            self._changing[key] = value
        else:
            self._changing.pop(key, None)

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        if self._assigned is None:
            self._assigned = {}
        # Also of a key that is not in the base: it may be on its way there.
        self._assigned[key] = None
        self._forget(key)

    def _forget(self, key: str) -> None:
        if self._read is not None:
            self._read.pop(key, None)
        self._changing.pop(key, None)

    def __contains__(self, key: object) -> bool:
        if self._assigned is not None and key in self._assigned:
            return self._assigned[key] is not None
        if self._read is not None and self._read.get(key) is _CORRUPT:  # type: ignore[call-overload]
            return False
        return key in self._base

    def __iter__(self) -> Iterator[str]:
        if not self._assigned and not self._read:
            return iter(self._base)
        return self._iterate(self._base, self._assigned or {})

    def _iterate(
        self, base: Mapping[str, bytes], assigned: Mapping[str, bytes | None]
    ) -> Iterator[str]:
        for key in base:
            if key in self:
                yield key
        for key, encoded in assigned.items():
            if encoded is not None and key not in base:
                yield key

    def __len__(self) -> int:
        if not self._assigned and not self._read:
            return len(self._base)
        return sum(1 for _ in self)

    # What has changed

    def _touched(self, lenient: bool = False) -> dict[str, bytes | None]:
        """
        The present bytes of all that may differ from the base; C{None} for
        what is removed.

        @param lenient: give empty bytes, which are no value's, for a value
            that can no longer be encoded, rather than raise.
        """
        touched = dict(self._assigned or ())
        for key, value in self._changing.items():
            try:
                touched[key] = self._encode(key, value)
            except TypeError as error:
                if not lenient:
                    raise TypeError(f"{self._describe(key)}: {error}") from None
                touched[key] = b""
        return touched

    @property
    def isUntouched(self) -> bool:
        """
        Whether it can be seen at a glance that there is nothing to store.
        """
        if self._assigned:
            return False
        base, known = self._base, self._known
        try:
            for key, value in self._changing.items():
                dumped, encoded = known[key]
                if marshal.dumps(value, _EXACT) != dumped or encoded != base.get(key):
                    return False
        except (KeyError, ValueError):
            return False  # a type that marshal does not have
        return True

    def changes(self) -> tuple[dict[str, bytes], frozenset[str]]:
        """
        What to store. Give it to L{accept} once it is.

        @return: the bytes of each key to set, and the keys to remove.
        @raise TypeError: a value was changed into one that cannot be stored.
        """
        if not self._assigned and self.isUntouched:
            self._offered = None
            return {}, _NO_KEYS
        base, touched = self._base, self._touched()
        changed = {key: encoded for key, encoded in touched.items() if encoded != base.get(key)}
        self._offered = changed or None
        if None not in changed.values():
            return cast("dict[str, bytes]", changed), _NO_KEYS
        removed = frozenset([key for key, encoded in changed.items() if encoded is None])
        return {key: one for key, one in changed.items() if one is not None}, removed

    @property
    def isDirty(self) -> bool:
        """
        Whether there is anything to store.
        """
        if self.isUntouched:
            return False
        base = self._base
        touched = self._touched(lenient=True)
        return any(encoded != base.get(key) for key, encoded in touched.items())

    def accept(self, set: Mapping[str, bytes], removed: Iterable[str]) -> None:
        """
        Changes are stored. What was done since they were taken stays to be
        stored.

        @param set: the bytes of the keys that were set.
        @param removed: the keys that were removed.
        """
        base = dict(self._base)
        stored: dict[str, bytes | None] = {**set, **dict.fromkeys(removed)}
        assigned, changing = self._assigned or {}, self._changing
        for key, encoded in stored.items():
            if encoded is None:
                base.pop(key, None)
            else:
                base[key] = encoded
            if key not in assigned:
                # Read, and perhaps changed in place: else it is out of date.
                if encoded is None or key not in changing:
                    self._forget(key)
            elif assigned[key] == encoded or (encoded is not None and key in changing):
                del assigned[key]
        self._base = base
        self._offered = None

    def refresh(self, encoded: Mapping[str, bytes]) -> None:
        """
        Another process has stored a newer state: take it over for the keys
        that are unchanged here. Values whose bytes are the same stay the same
        objects.

        @param encoded: the bytes of each stored key. Kept, never changed.
        """
        base, read = self._base, self._read
        self._base = encoded
        if not self._offered and encoded == base:
            return
        if self._assigned or read:
            offered = self._offered or {}
            # Over what is being stored, undoing a change is a change too.
            self._assigned = kept = {
                key: present
                for key, present in self._touched(lenient=True).items()
                if present != base.get(key) or present != offered.get(key, present)
            }
            self._read = read and {
                key: value
                for key, value in read.items()
                if key in kept or encoded.get(key) == base.get(key)
            }
            left = self._read or {}
            self._changing = {key: value for key, value in self._changing.items() if key in left}

    def revert(self) -> None:
        """
        Forget all that was changed here.
        """
        base = self._base
        for key, encoded in self._touched(lenient=True).items():
            if encoded != base.get(key):
                self._forget(key)
        self._assigned = self._offered = None

    # How large it is

    def _sizes(self) -> dict[str, int]:
        present: dict[str, bytes | None] = {**self._base, **self._touched()}
        return {
            key: len(key.encode()) + len(encoded)
            for key, encoded in present.items()
            if encoded is not None
        }

    def isOver(self, limit: int, set: Mapping[str, bytes]) -> bool:
        """
        Whether the L{encodedSize} is more than C{limit}.

        @param set: what L{changes} gave.
        """
        # Nearly always it is far below, and then a rough sum will do.
        base = self._base
        names = len("".join(base)) + len("".join(set))
        most = 4 * names + sum(map(len, base.values())) + sum(map(len, set.values()))
        return most > limit and self.encodedSize() > limit

    def encodedSize(self) -> int:
        """
        Say how large all the data is, changes included.

        @return: the bytes of all keys and values.
        @raise TypeError: a value was changed into one that cannot be stored.
        """
        return sum(self._sizes().values())

    def biggest(self, n: int = 3) -> list[tuple[str, int]]:
        """
        Find what takes most of L{encodedSize}.

        @param n: how many keys to return at most.
        @return: the keys with their sizes in bytes, largest first.
        @raise TypeError: a value was changed into one that cannot be stored.
        """
        return sorted(self._sizes().items(), key=lambda item: (-item[1], item[0]))[:n]


class View(_Readable):
    """
    Those keys of a L{Data} that carry a prefix, without it.
    """

    __slots__ = ("_data", "_name", "_prefix")

    def __init__(self, data: Data, prefix: str, name: str = "session") -> None:
        """
        @param data: where the values are.
        @param prefix: the character that these keys start with in there.
        @param name: what error messages call this mapping.
        """
        self._data = data
        self._prefix = prefix
        self._name = name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} keys>"

    def __getitem__(self, key: str) -> object:
        if isinstance(key, str):
            value = self._data.get(self._prefix + key, _ABSENT)
            if value is not _ABSENT:
                return value
        raise KeyError(key)

    def __setitem__(self, key: str, value: object) -> None:
        if type(key) is not str:
            raise TypeError(f"{self._name}'s keys are str, not {type(key).__name__}")
        self._data.assign(self._prefix + key, value, key, self._describe)

    def _describe(self, key: str) -> str:
        return f"{self._name}[{key!r}]"

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        del self._data[self._prefix + key]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._prefix + key in self._data

    def __iter__(self) -> Iterator[str]:
        prefix = self._prefix
        return (key[len(prefix) :] for key in self._data if key.startswith(prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def clear(self) -> None:
        """
        Remove these keys, and no others.
        """
        for key in list(self):
            del self[key]
