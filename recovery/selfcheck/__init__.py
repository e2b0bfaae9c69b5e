"""``manage.py selfcheck``: five questions a job, answered from evidence, and a doctor's findings.

Apps register examinations in ``<app>/selfcheck.py``, and what proves a job's limit with the job.
"""

from recovery.selfcheck import engine, schema, system
from recovery.selfcheck.findings import Finding, Severity, examination

__all__ = ["Finding", "Severity", "engine", "examination", "schema", "system"]
