"""Web page of the service, a client of its public API that runs in the API's process (NiceGUI)."""
