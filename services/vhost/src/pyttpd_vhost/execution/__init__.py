"""Everything that starts programs for a tenant: the exec service (service.py, with a reaper for each program), and the
manager of the tenant's application processes (manager.py), which uses it like anybody else.
"""
