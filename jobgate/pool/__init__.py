"""
Workers and their lives.
"""
