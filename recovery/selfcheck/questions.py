"""The five questions by name."""

from collections.abc import Mapping

from recovery.selfcheck import beats, limits, locks, scrapes, trails
from recovery.selfcheck.answers import Question

QUESTIONS: Mapping[str, Question] = {
    "lock": locks.is_locked,
    "heartbeat": beats.beats,
    "limit": limits.is_limited,
    "metric": scrapes.is_exported,
    "audit": trails.is_audited,
}
