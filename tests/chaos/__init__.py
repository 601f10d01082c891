"""Chaos: a ledger of samples through real Kafka and Redis while everything is killed, paused, cut and flushed."""
