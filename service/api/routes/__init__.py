"""The routes, a module per kind of thing. They translate; what is true lies in ``api_queries``, ``engine_queries`` and
below."""
