"""
What applications and stores are tested with.
"""
