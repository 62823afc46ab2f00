"""
What can carry a session, one wire format to a file.
"""
