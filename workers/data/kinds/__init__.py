"""Dataset kinds: a class in a file each, all of them in ``registry.KINDS``."""
