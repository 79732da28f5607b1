"""
Bytes to messages and back: sans-IO, without Twisted and without a clock.
"""
