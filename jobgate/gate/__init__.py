"""
From a command to its reply.
"""

from jobgate.gate.gate import Gate

__all__ = ["Gate"]
