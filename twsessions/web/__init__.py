"""
A request and its session: load, render, commit, answer.
"""
