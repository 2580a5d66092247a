"""Which fixtures have the tests of the PostgreSQL backend?"""

from postgres_support import database, own_server, place, server

__all__ = ["database", "own_server", "place", "server"]
