"""
jobgate's tests: `unit` runs without children, ports or waiting.
"""
