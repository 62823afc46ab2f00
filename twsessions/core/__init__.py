"""
The rules of sessions, as pure functions and data: no Twisted, no clock, no I/O.
"""
