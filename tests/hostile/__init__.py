"""Hostile processes: what a tenant, or a role that was taken over, tries against the three locks."""
