"""django-q2's own cluster and broker: a task for each pending entry, then the workers."""

import django


def main() -> None:
    """Queue the tasks, then work until a signal comes."""
    django.setup()
    from django_q.cluster import Cluster
    from django_q.tasks import async_task

    from benchmarks.peers.tasks import waiting

    for pk in waiting():
        async_task("benchmarks.peers.tasks.post_one", pk)
    Cluster().start()


if __name__ == "__main__":
    main()
