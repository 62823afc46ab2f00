"""
What an operator touches.
"""
