"""Heartbeats: ``job:heartbeat:<name>`` in Redis, the same facts in ``recovery_job``."""

import json
import os
from datetime import datetime
from uuid import UUID

from recovery import link
from recovery.leases import HOST
from recovery.registry import Job

HEARTBEAT_KEY = "job:heartbeat:{name}"
MIN_EXPIRY_S = 600
PERIODS = 10
BEAT = """
local known, fence = pcall(function()
  return tonumber(cjson.decode(redis.call('get', KEYS[1]))['fence'])
end)
if known and fence and fence > tonumber(ARGV[2]) then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'EX', ARGV[3])
return 1
"""


def beat(
    job: Job,
    *,
    at: datetime,
    run_id: UUID,
    status: str,
    duration_s: float,
    fence: int,
    first: bool = False,
) -> None:
    """Write the heartbeat in Redis where there is one; it expires after ten periods or 10 min.

    A run that has lost its lease leaves the heartbeat of a later one as it is. The ``first`` of a
    run is written whatever is there: who has just taken the lease has the highest fence, unless
    Redis remembers another database's.
    """
    if not link.usable():
        return
    beat_json = json.dumps(
        {
            "job": job.name,
            "at": at.isoformat(),
            "host": HOST,
            "pid": os.getpid(),
            "run_id": str(run_id),
            "status": status,
            "duration_s": round(duration_s, 3),
            "fence": fence,
        }
    )
    key = HEARTBEAT_KEY.format(name=job.name)
    expiry_s = max(PERIODS * job.period_s, MIN_EXPIRY_S)
    try:
        if first:
            link.call(lambda client: client.set(key, beat_json, ex=expiry_s))
        else:
            link.call(lambda it: it.eval(BEAT, 1, key, beat_json, str(fence), str(expiry_s)))
    except link.RedisDownError:
        return
