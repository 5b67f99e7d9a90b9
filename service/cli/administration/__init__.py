"""Commands of operators: keys, backup, garbage collection, webhooks, doctor."""
