"""
The same two pages on other people's session packages: a counter in a session
with eight fields, and nothing. Each is given a port and the port of a Redis.
"""
