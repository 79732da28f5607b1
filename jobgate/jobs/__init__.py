"""
Commands that outlive their request: jobs, graphs, leases, and the journal they are kept in.
"""
