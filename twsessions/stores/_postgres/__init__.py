"""
What L{twsessions.stores.postgresql} is made of.
"""
