"""The client of the API for ``async`` code.

Each method is written here, once: ``python -m tests.repository.documents`` makes the blocking client beside this
package from it. With the transport ``httpx2.ASGITransport(app)`` it calls an application in its own process; such an
answer comes as a whole, so that ``events`` says nothing before the job's end, and ``stored_events`` has to be asked.
"""
