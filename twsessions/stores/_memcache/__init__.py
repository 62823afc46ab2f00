"""
What L{twsessions.stores.memcached} is made of.
"""
