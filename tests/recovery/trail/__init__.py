"""The audit trail: seals, archives, verification, search over all tiers."""
