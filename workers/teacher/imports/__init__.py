"""Import of logits that no teacher of this service has made, as caches of the store."""
