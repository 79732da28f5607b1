"""
HTTP and nothing else.
"""
