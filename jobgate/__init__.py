"""
jobgate: slow programs behind HTTP, called as if they were quick and simple.

Workers import this package, so it must import nothing.
"""

__version__ = "0.1.0"
