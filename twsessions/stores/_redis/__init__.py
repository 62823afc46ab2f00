"""
What L{twsessions.stores.redis} is made of.
"""
