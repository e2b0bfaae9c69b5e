"""The audit trail: sealed, archived, verified, and found again in all tiers."""
