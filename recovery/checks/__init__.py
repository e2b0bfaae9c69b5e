"""System checks: what Django and django-q2 would accept and what would hurt.

Ids run on through all apps; docs/runbook.md has the list.
"""

from recovery.checks import configuration, databases, deployment, redis_server

__all__ = ["configuration", "databases", "deployment", "redis_server"]
