"""How others would do it: a task an entry, on django-q2's own cluster and on Celery's."""
