"""
Where sessions are kept: one store a file, each a provider of ISessionStore.
"""
