"""Webhooks: a signed message to a URL of the client's once its job has ended (https://www.standardwebhooks.com).

``allowed`` says where messages may go, ``signature`` signs them, ``sender`` makes one request, and ``dispatcher``
delivers what is due in the outbox (``service.db.webhook_outbox``) from within the API's process.
"""
