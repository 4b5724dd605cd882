"""Answers that only a new model changes: who has the same one already gets 304 (RFC 9110, section 13.1.2)."""

import re
from hashlib import sha256

from iris_wsgi.wsgi.application import Request, Response, Route

# To be kept, and asked about before it is used: nobody can know when the next model comes.
NO_CACHE = ("Cache-Control", "no-cache")

tags_in = re.compile('(?:W/)?("[!#-~\x80-\xff]*")').findall


def revalidated(route: Route) -> Route:
    """The same route with a strong ETag, that of the content's bytes, and 304 for a request that names it in If-None-Match.

    For GET, which HEAD follows; a POST that names it would have to be refused, not answered with 304.
    """

    def answer(request: Request) -> Response:
        response = route.handler(request)
        tag = f'"{sha256(response.body).hexdigest()[:32]}"'
        response = response._replace(headers=(*response.headers, ("ETag", tag), NO_CACHE))
        named = request.environ.get("HTTP_IF_NONE_MATCH")
        return response if named is None or not names(named, tag) else response._replace(body=b"", status=304)

    return route._replace(handler=answer, doc=route.doc._replace(success=(*route.doc.success, 304)))


def names(named: str, tag: str) -> bool:
    """Whether this If-None-Match names the tag by the weak comparison (RFC 9110, section 8.8.3.2), which leaves out W/."""
    return named.strip() == "*" or tag in tags_in(named)
