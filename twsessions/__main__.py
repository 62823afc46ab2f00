"""
C{python -m twsessions}: see L{twsessions.ops.cli}.
"""

from twsessions.ops.cli import main

if __name__ == "__main__":
    main()
