"""
Persistent components: dataclasses and attrs classes that are stored with a
session.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from twisted.python.components import registerAdapter
from twisted.python.reflect import qual
from zope.interface.interface import InterfaceClass

if TYPE_CHECKING:
    from twsessions.web.session import Session

__all__ = ["isPersistent", "registerComponent", "sync"]

_fields: dict[str, tuple[type, tuple[str, ...]]] = {}  # by the interface's name


def registerComponent(cls: type, interface: InterfaceClass) -> None:
    """
    Make C{cls} a persistent component of every session:
    C{interface(session)} is an instance of it, and a change to one is saved like
    any other.

    @param cls: a dataclass or attrs class whose fields all have defaults, and
        hold what a session can hold.
    @param interface: what it is asked for by. Registered before for another
        class: L{ValueError}.
    @raise TypeError: C{cls} is something else, or has a field that needs an
        argument.
    """
    from twsessions.web.session import Session

    names = _fieldsOf(cls)
    try:
        cls()
    except TypeError as error:
        raise TypeError(
            f"{cls.__name__} must be makeable without arguments, so that every session"
            f" can have one: {error}"
        ) from error
    if not isinstance(interface, InterfaceClass):
        raise TypeError(f"a component is registered for a zope Interface, not {interface!r}")
    name = qual(interface)
    known = _fields.get(name)
    if known is not None:
        if known[0] is cls:
            return
        raise ValueError(f"{name} is {known[0].__name__}'s already")
    _fields[name] = cls, names
    registerAdapter(lambda session: _load(session, name), Session, interface)


def isPersistent(name: str) -> bool:
    """
    Whether the interface of that name stands for a persistent component.
    """
    return name in _fields


def sync(session: Session, cache: Mapping[str, object]) -> None:
    """
    Put the state of the live components where the session's changes are looked
    for.

    @raise TypeError: a field holds what a session cannot.
    """
    for name, component in cache.items():
        if name in _fields:
            stored = session._components()
            state = _stateOf(name, component)
            # One that was only looked at must not go over what another process stores.
            known = stored[name] if name in stored else _stateOf(name, _fields[name][0]())
            if known != state:
                stored[name] = state


def refresh(session: Session, cache: Mapping[str, object]) -> None:
    """
    The session was brought to another process's state: so are its components.
    """
    stored = session._components()
    for name, component in cache.items():
        if name in _fields:
            values = stored.get(name)
            if isinstance(values, dict):
                for field in _fields[name][1]:
                    if field in values:
                        object.__setattr__(component, field, values[field])


def revert(session: Session, cache: Mapping[str, object]) -> None:
    """
    What was changed is not stored and never will be: the components are again
    what is.
    """
    for name, component in cache.items():
        if name in _fields:
            stored = _load(session, name)
            for field in _fields[name][1]:
                object.__setattr__(component, field, getattr(stored, field))


def _fieldsOf(cls: type) -> tuple[str, ...]:
    if isinstance(cls, type):
        if dataclasses.is_dataclass(cls):
            return tuple(field.name for field in dataclasses.fields(cls))
        attributes = getattr(cls, "__attrs_attrs__", None)
        if attributes is not None:
            return tuple(attribute.name for attribute in attributes)
    raise TypeError(f"a persistent component is a dataclass or an attrs class, not {cls!r}")


def _stateOf(name: str, component: object) -> dict[str, Any]:
    return {field: getattr(component, field) for field in _fields[name][1]}


def _load(session: Session, name: str) -> object:
    cls, fields = _fields[name]
    component = cls()
    values = session._components().get(name)
    if isinstance(values, dict):
        for field in fields:
            if field in values:  # one that came with a later release keeps its default
                object.__setattr__(component, field, values[field])
    return component
