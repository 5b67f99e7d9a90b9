"""The routes, a module per kind of thing. They translate; what is true lies in ``registry``, ``records`` and below."""
