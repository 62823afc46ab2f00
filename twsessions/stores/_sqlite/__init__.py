"""
What L{twsessions.stores.sqlite} is made of.
"""
