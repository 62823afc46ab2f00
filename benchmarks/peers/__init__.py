"""
Other people's packages, each a server that is given its port. Of sessions: two
pages, a counter in a session with eight fields, and nothing; they are given the
port of a Redis too. Of SockJS: C{/echo}, and C{/broadcast} to all.
"""
