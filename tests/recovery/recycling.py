"""The product's settings, but that a worker ends after three tasks."""

from settings.base import *  # noqa: F403
from settings.base import Q_CLUSTER

Q_CLUSTER |= {"recycle": 3}
