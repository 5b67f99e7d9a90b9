"""Routes of the API, a module per resource. They translate between HTTP and ``service.db``, and decide nothing."""
