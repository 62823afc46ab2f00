"""
What sessions cost, beside what one would use otherwise: C{make bench}.
"""
