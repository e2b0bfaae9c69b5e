"""The engine that runs jobs and the operators' room; it knows nothing of orders or ledgers."""
