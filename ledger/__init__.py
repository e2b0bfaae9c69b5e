"""The double-entry stock ledger: publish, outbox, postings."""
