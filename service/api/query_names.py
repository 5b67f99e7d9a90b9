"""Names of query parameters: one that the route does not have is refused, not ignored."""

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from workers.errors import UnknownName


def query_names(dependant: Dependant) -> set[str]:
    """Names of the query parameters that a route (``APIRoute.dependant``) and its dependencies declare."""
    own = {parameter.alias for parameter in dependant.query_params}
    return own.union(*map(query_names, dependant.dependencies))


async def check_query(request: Request) -> None:
    """Refuse a request with a query parameter that its route does not have. Raises UnknownName."""
    if not request.query_params:
        return
    route: APIRoute = request.scope["route"]
    known = query_names(route.dependant)
    for name in request.query_params:
        if name not in known:
            raise UnknownName("query parameter", name, known)
