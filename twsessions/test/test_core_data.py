"""
Tests for L{twsessions.core.data}.
"""

from __future__ import annotations

import sys
from datetime import date
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from twsessions.core.codec import decode, encode
from twsessions.core.data import Data, View, withoutPrefix
from twsessions.errors import CorruptRecord, SessionTooLarge

NOTHING: tuple[dict[str, bytes], frozenset[str]] = ({}, frozenset())


def stored(**values: object) -> dict[str, bytes]:
    return {key: encode(value) for key, value in values.items()}


class TestMapping:
    def test_reads(self) -> None:
        data = Data(stored(a=1, b=[2]))
        assert dict(data) == {"a": 1, "b": [2]}
        assert data["b"] is data["b"]
        assert data.get("c") is None
        assert ("a" in data, "c" in data, "5" in data) == (True, False, False)
        with pytest.raises(KeyError):
            data["c"]
        assert data.changes() == NOTHING
        assert not data.isDirty

    def test_looksWithoutDecoding(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("twsessions.core.data.decode", None)
        data = Data(stored(a=1, b=2))
        assert (len(data), list(data), "a" in data) == (2, ["a", "b"], True)
        data["c"] = 3
        del data["a"]
        assert (len(data), list(data), "a" in data) == (2, ["b", "c"], False)
        View(data, "").clear()
        assert (len(data), list(data)) == (0, [])
        assert data.changes() == ({}, frozenset({"a", "b"}))

    def test_baseIsShared(self) -> None:
        base = stored(a=1, b=2)
        data = Data(base)
        data["a"] = 5
        del data["b"]
        data.accept(*data.changes())
        assert base == stored(a=1, b=2)
        assert dict(data) == {"a": 5}

    def test_setAndRemove(self) -> None:
        data = Data(stored(a=1, b=2, c=3))
        data["a"] = 5
        data["b"] = 2
        data["d"] = None
        del data["c"]
        assert data.isDirty
        assert data.changes() == (stored(a=5, d=None), frozenset({"c"}))
        with pytest.raises(KeyError):
            del data["c"]
        assert data.pop("d", 0) is None
        assert data.pop("d", 0) == 0
        assert data.setdefault("c", [7]) == [7]
        assert data.changes() == (stored(a=5, c=[7]), frozenset())

    def test_popitem(self) -> None:
        data = Data({"bad": b"\xc1", **stored(a=1)})
        assert data.popitem() == ("a", 1)
        with pytest.raises(KeyError):
            data.popitem()
        assert data.changes() == ({}, frozenset({"a"}))

    def test_badValues(self) -> None:
        data = Data(stored(cart=1))
        with pytest.raises(TypeError) as caught:
            data["cart"] = object()
        assert str(caught.value) == "session['cart']: cannot store a object"
        with pytest.raises(TypeError, match=r"^session\['cart'\]: cannot store a .* in \[0\]"):
            data["cart"] = [object()]
        assert (data["cart"], data.isDirty) == (1, False)

    @pytest.mark.parametrize("key", [1, b"a", None, "\ud800", type("S", (str,), {})("a")])
    def test_badKeys(self, key: Any) -> None:
        data = Data()
        with pytest.raises(TypeError):
            data[key] = 1
        with pytest.raises(TypeError):
            View(data, ".")[key] = 1
        assert data.changes() == NOTHING

    def test_tooLarge(self) -> None:
        data = Data(stored(a="old"), maxValueBytes=10)
        data["b"] = "x" * 9
        with pytest.raises(SessionTooLarge) as caught:
            data["a"] = "x" * 10
        assert (caught.value.size, caught.value.limit) == (11, 10)
        assert caught.value.biggest == (("a", 11),)
        assert data["a"] == "old"

    def test_isOverAgreesWithTheSize(self) -> None:
        data = Data(stored(a="x" * 20, b=[1]))
        data["c"] = "\u20ac" * 9
        data["b"].append(2)  # type: ignore[attr-defined]
        del data["a"]
        set_, _ = data.changes()
        size = data.encodedSize()
        for limit in (size - 1, size, size + 1, 10 * size):
            assert data.isOver(limit, set_) is (size > limit)

    def test_reprShowsNoValues(self) -> None:
        assert repr(Data(stored(key="secret"))) == "<Data of 1 keys>"

    def test_emptyIsSmall(self) -> None:
        assert sys.getsizeof(Data()) <= 112
        assert not hasattr(Data(), "__dict__")
        assert not hasattr(View(Data(), "."), "__dict__")


class TestChanges:
    @pytest.mark.parametrize(
        ("value", "change"),
        [
            ([1], lambda value: value.append(2)),
            ({"a": [1]}, lambda value: value["a"].append(2)),
            ({1}, lambda value: value.add(2)),
            ((1, ([],)), lambda value: value[1][0].append(2)),
            ([date(2026, 1, 1)], lambda value: value.append(2)),
            ([1], lambda value: value.append(date(2026, 1, 1))),
        ],
    )
    @pytest.mark.parametrize("assigned", [False, True])
    def test_inPlace(self, value: Any, change: Any, assigned: bool) -> None:
        data = Data(stored(k=value))
        if assigned:
            data["k"] = decode(encode(value))
        assert data["k"] == value
        assert not data.isDirty
        change(data["k"])
        assert data.isDirty
        assert data.changes() == (stored(k=data["k"]), frozenset())
        data.accept(*data.changes())
        assert data.changes() == NOTHING

    def test_immutableIsNotEncodedAgain(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = Data(stored(a="x", b=(1, (2,)), c=frozenset([(1,)])))
        dict(data)
        data["d"] = 5
        monkeypatch.setattr("twsessions.core.data.encode", None)
        assert data.changes() == (stored(d=5), frozenset())

    def test_changedIntoUnstorable(self) -> None:
        data = Data(stored(a=[], b=[]))
        data["a"].append(object())  # type: ignore[attr-defined]
        data["b"].append(1)  # type: ignore[attr-defined]
        for attempt in (data.changes, data.encodedSize, data.biggest):
            with pytest.raises(TypeError, match=r"session\['a'\]: cannot store a object in \[0\]"):
                attempt()
        assert data.isDirty
        data.refresh(stored(a=[3], b=[3]))
        data["a"].clear()  # type: ignore[attr-defined]
        assert data.changes() == (stored(a=[], b=[1]), frozenset())

    def test_changedBack(self) -> None:
        data = Data(stored(a=[]))
        data["a"] = [1]
        data["a"].clear()  # type: ignore[attr-defined]
        assert data.changes() == NOTHING
        assert not data.isDirty

    def test_changedWhileStoring(self) -> None:
        data = Data(stored(kept=1, gone=1, back=1))
        data["kept"] = [2]
        data["fresh"] = 1
        data["undone"] = 1
        del data["back"]
        changes = data.changes()
        data["kept"].append(3)  # type: ignore[attr-defined]
        data["undone"] = 2
        del data["fresh"]
        data["back"] = 1
        data.accept(*changes)
        assert dict(data) == {"kept": [2, 3], "gone": 1, "undone": 2, "back": 1}
        assert data.changes() == (stored(kept=[2, 3], undone=2, back=1), frozenset({"fresh"}))

    def test_putBackWhileStoring(self) -> None:
        data = Data(stored(a=1))
        data["a"] = 2
        changes = data.changes()
        data["a"] = 1
        data.accept(*changes)
        assert data.changes() == (stored(a=1), frozenset())

    @pytest.mark.parametrize("landed", [False, True])
    def test_refreshWhileStoring(self, landed: bool) -> None:
        data = Data(stored(a=1))
        data["a"] = 2
        data["new"] = 1
        changes = data.changes()
        data["a"] = 1
        del data["new"]
        data.refresh(stored(a=2, new=1, other=1) if landed else stored(a=1, other=1))
        data.accept(*changes)
        assert dict(data) == {"a": 1, "other": 1}
        assert data.changes() == (stored(a=1), frozenset({"new"}))

    def test_refresh(self) -> None:
        data = Data(stored(same=[1], theirs=[1], ours=[1], changed=[1], dropped=[1], gone=1))
        objects = dict(data)
        data["ours"] = [2]
        data["changed"].append(2)  # type: ignore[attr-defined]
        data["dropped"].append(2)  # type: ignore[attr-defined]
        del data["gone"]
        data.refresh(stored(same=[1], theirs=[9], ours=[9], changed=[9], gone=9, more=9))
        assert dict(data) == {
            "same": [1],
            "theirs": [9],
            "ours": [2],
            "changed": [1, 2],
            "dropped": [1, 2],
            "more": 9,
        }
        assert data["same"] is objects["same"]
        assert data["changed"] is objects["changed"]
        assert data.changes() == (
            stored(ours=[2], changed=[1, 2], dropped=[1, 2]),
            frozenset({"gone"}),
        )

    def test_equalAssignmentIsNoChange(self) -> None:
        data = Data(stored(a=1))
        data["a"] = 1
        data.refresh(stored(a=2))
        assert data["a"] == 2

    def test_revert(self) -> None:
        data = Data(stored(a=[1], b=[1], c=1))
        same = data["a"]
        data["b"].append(2)  # type: ignore[attr-defined]
        data["d"] = 1
        del data["c"]
        data.revert()
        assert dict(data) == {"a": [1], "b": [1], "c": 1}
        assert data["a"] is same
        assert data.changes() == NOTHING

    def test_revertWhileStoring(self) -> None:
        data = Data(stored(a=1, b=1))
        data["a"] = 2
        del data["b"]
        changes = data.changes()
        data.revert()
        assert dict(data) == {"a": 1, "b": 1}
        data.accept(*changes)
        assert dict(data) == {"a": 2}
        assert data.changes() == NOTHING

    def test_sizes(self) -> None:
        data = Data(stored(a="x" * 10, b="x" * 20, c=[1]))
        assert data.encodedSize() == 3 + 11 + 21 + 2
        data["c"].extend(range(30))  # type: ignore[attr-defined]
        data["\xe9"] = None
        del data["a"]
        assert data.biggest(2) == [("c", 1 + 3 + 31), ("b", 22)]
        assert data.encodedSize() == 35 + 22 + 3


class TestCorrupt:
    def test_readsAsAbsent(self) -> None:
        heard: list[tuple[str, CorruptRecord]] = []
        data = Data(
            {"bad": b"\xc1", **stored(a=1)},
            onCorrupt=lambda _, key, error: heard.append((key, error)),
        )
        assert list(data.items()) == [("a", 1)]
        assert list(data.values()) == [1]
        assert (list(data), len(data), "bad" in data) == (["a"], 1, False)
        assert data.get("bad", 5) == 5
        with pytest.raises(KeyError):
            data["bad"]
        with pytest.raises(KeyError):
            del data["bad"]
        assert [key for key, _ in heard] == ["bad"]
        assert isinstance(heard[0][1], CorruptRecord)
        assert data.changes() == NOTHING
        data["bad"] = 2
        assert data["bad"] == 2
        assert data.changes() == (stored(bad=2), frozenset())

    def test_mended(self) -> None:
        data = Data({"bad": b"\xc1"})
        assert data.get("bad") is None
        data.refresh(stored(bad=1))
        assert data["bad"] == 1


class TestView:
    def test_mapping(self) -> None:
        data = Data({".a": encode(1), "!a": encode(2)}, describe=withoutPrefix)
        values, flash = View(data, "."), View(data, "!", "flash")
        assert (dict(values), dict(flash)) == ({"a": 1}, {"a": 2})
        values["b"] = [3]
        assert (len(values), len(flash), "b" in values, "b" in flash) == (2, 1, True, False)
        with pytest.raises(KeyError, match="^'zz'$"):
            flash["zz"]
        with pytest.raises(KeyError, match="^'b'$"):
            del flash["b"]
        any_: Any = 5
        assert (flash.get(any_), any_ in flash) == (None, False)
        values.clear()
        assert dict(data) == {"!a": 2}
        assert flash.popitem() == ("a", 2)
        assert repr(flash) == "<View of 0 keys>"

    def test_namesTheUsersKey(self) -> None:
        data = Data(maxValueBytes=5, describe=withoutPrefix)
        values, flash = View(data, "."), View(data, "!", "flash")
        with pytest.raises(TypeError, match=r"^session\['cart'\]: cannot store a object$"):
            values["cart"] = object()
        with pytest.raises(TypeError, match=r"^flash\['saved'\]: cannot store a object$"):
            flash["saved"] = object()
        with pytest.raises(SessionTooLarge) as caught:
            values["cart"] = "xxxxxx"
        assert caught.value.biggest == (("cart", 7),)
        with pytest.raises(SessionTooLarge, match="^.{0,250}$") as caught:
            values["k" * 1_000_000] = "xxxxxx"  # a log is no place for it
        assert caught.value.biggest == (("k" * 1_000_000, 7),)
        values["cart"] = cart = []
        cart.append(object())
        with pytest.raises(TypeError, match=r"^session\['cart'\]: "):
            data.changes()

    def test_corrupt(self) -> None:
        view = View(Data({".bad": b"\xc1", ".a": encode(1)}), ".")
        assert list(view.items()) == [("a", 1)]
        assert list(view) == ["a"]


KEYS = st.sampled_from(["a", "b", "c"])
SCALARS = st.integers(0, 2) | st.text("xy", max_size=1)
LISTS = st.lists(SCALARS, max_size=2)
VALUES = SCALARS | LISTS | st.tuples(LISTS)
STATES = st.dictionaries(KEYS, VALUES)
ABSENT = object()


def copied(value: Any) -> Any:
    return decode(encode(value))


class Machine(RuleBasedStateMachine):
    """
    Data beside two plain dicts: what is stored, and what is to be.
    """

    @initialize(state=STATES)
    def start(self, state: dict[str, object]) -> None:
        self.base = state
        self.model = copied(state)
        self.data = Data(stored(**state))
        self.underWay: Any = None

    def changed(self, key: str) -> bool:
        return bool(self.model.get(key, ABSENT) != self.base.get(key, ABSENT))

    @rule(key=KEYS, value=VALUES)
    def assign(self, key: str, value: object) -> None:
        self.model[key] = copied(value)
        self.data[key] = value

    @rule(key=KEYS)
    def remove(self, key: str) -> None:
        assert self.data.pop(key, ABSENT) == self.model.pop(key, ABSENT)

    @rule(key=KEYS, value=SCALARS)
    def append(self, key: str, value: object) -> None:
        for values in (self.model, self.data):
            target = values.get(key)
            target = target[0] if isinstance(target, tuple) else target
            if isinstance(target, list):
                target.append(value)

    @rule(key=KEYS)
    def read(self, key: str) -> None:
        assert self.data.get(key, ABSENT) == self.model.get(key, ABSENT)

    @rule()
    def clear(self) -> None:
        View(self.data, "").clear()
        self.model.clear()

    @rule()
    def begin(self) -> None:
        """
        A commit starts...
        """
        if self.underWay is None:
            self.underWay = self.data.changes()

    @rule()
    def end(self) -> None:
        """
        ...and ends, with anything but a revert or refresh in between.
        """
        if self.underWay is not None:
            changed, removed = self.underWay
            self.underWay = None
            self.base = {key: value for key, value in self.base.items() if key not in removed} | {
                key: decode(encoded) for key, encoded in changed.items()
            }
            self.data.accept(changed, removed)

    @rule(state=STATES)
    def refresh(self, state: dict[str, object]) -> None:
        if self.underWay is not None:
            return
        changed = {key for key in "abc" if self.changed(key)}
        same = {
            key: self.data[key]
            for key in self.data
            if key in changed or state.get(key, ABSENT) == self.base.get(key, ABSENT)
        }
        self.model = {
            key: values[key]
            for key in "abc"
            if key in (values := self.model if key in changed else copied(state))
        }
        self.base = state
        self.data.refresh(stored(**state))
        for key, value in same.items():
            assert self.data[key] is value

    @rule()
    def revert(self) -> None:
        if self.underWay is None:
            self.data.revert()
            self.model = copied(self.base)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "data"):
            return
        data, model = self.data, self.model
        assert sorted(data) == sorted(model)
        assert len(data) == len(model)
        assert all((key in data) == (key in model) for key in "abc")
        assert data.isDirty == (model != self.base)
        assert data.encodedSize() == sum(
            len(key) + len(encode(value)) for key, value in model.items()
        )
        if self.underWay is None:
            assert data.changes() == (
                stored(**{key: value for key, value in model.items() if self.changed(key)}),
                frozenset(key for key in self.base if key not in model),
            )
            # Looking is not storing.
            data._offered = None


TestMachine = Machine.TestCase
