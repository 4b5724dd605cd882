"""Bearer-token authentication (RFC 6750) with the tokens of a file."""

import hashlib
import hmac
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from iris_wsgi.errors import Problem, Unauthorized
from iris_wsgi.http.request_head import RequestHead
from iris_wsgi.settings import BadSetting
from iris_wsgi.wsgi.application import App, PreparedRequest
from iris_wsgi.wsgi.body import Environ

RELOAD_SECONDS = 1.0
MAX_FILE_BYTES = 16384
MIN_LENGTH, MAX_LENGTH = 16, 512
# The characters of RFC 6750, section 2.1.
is_token = re.compile(rb"(?=.{%d,%d}\Z)[A-Za-z0-9._~+/-]+=*" % (MIN_LENGTH, MAX_LENGTH)).fullmatch
credentials = re.compile(r"bearer +(.+)", re.IGNORECASE | re.ASCII | re.DOTALL).fullmatch
# A challenge has at least one parameter (section 3).
CHALLENGE = 'Bearer realm="iris_wsgi"'
REQUIRED = "This server requires a bearer token. Send it as curl -H 'Authorization: Bearer TOKEN' does."
INVALID = "Invalid bearer token."


class Tokens:
    """The tokens of a file, one per line. All are valid, and calls to other servers send the first."""

    def __init__(self, file: str, log_event: Callable[[str, str], None]) -> None:
        """Raises BadSetting for an invalid file. If the file becomes invalid later, the log reports that."""
        self.file, self.log_event = Path(file), log_event
        self.error = ""
        self.load(self.read())

    def read(self) -> bytes:
        try:
            # Reading a named pipe would block, and consume its tokens.
            if not self.file.is_file():
                raise BadSetting("IRIS_TOKEN_FILE is not a file")
            with self.file.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise BadSetting(f"IRIS_TOKEN_FILE cannot be read: {error.strerror}") from None
        if len(content) > MAX_FILE_BYTES:
            raise BadSetting(f"IRIS_TOKEN_FILE has more than {MAX_FILE_BYTES} bytes")
        return content

    def load(self, content: bytes) -> None:
        lines = [line.strip() for line in content.splitlines()]
        tokens = [line for line in lines if line]
        if not tokens:
            raise BadSetting("IRIS_TOKEN_FILE is empty; write one token per line")
        if invalid := [i for i, line in enumerate(lines, 1) if line and not is_token(line)]:
            raise BadSetting(
                f"IRIS_TOKEN_FILE has an invalid token in line {invalid[0]}; a token has {MIN_LENGTH} to {MAX_LENGTH} letters, "
                "digits and - . _ ~ + /, and optionally = at the end"
            )
        self.content = content
        self.digests = [hashlib.sha256(token).digest() for token in tokens]
        self.first = tokens[0].decode()

    def reload(self) -> None:
        """Loads the file if it has changed. If it is invalid, the previous tokens stay valid."""
        try:
            content = self.read()
            if content != self.content:
                self.load(content)
                self.log_event("info", f"IRIS_TOKEN_FILE has changed; valid tokens: {len(self.digests)}")
            self.error = ""
        except BadSetting as error:
            if str(error) != self.error:
                self.error = str(error)
                self.log_event("error", f"{error}; the previous tokens stay valid")

    def headers(self) -> tuple[tuple[str, str]]:
        """Returns the headers of calls to other servers."""
        return (("Authorization", f"Bearer {self.first}"),)

    def check(self, authorization: str) -> Problem | None:
        """Returns the failure of a request with this Authorization header, or None for a valid token."""
        found = credentials(authorization)
        if found is None:
            return Unauthorized(REQUIRED, headers=(("WWW-Authenticate", CHALLENGE),))
        digest = hashlib.sha256(found[1].encode("utf-8", "replace")).digest()
        # The list compares all tokens, also after a match, so that the time does not depend on the token.
        if any([hmac.compare_digest(digest, valid) for valid in self.digests]):
            return None
        return Unauthorized(INVALID, headers=(("WWW-Authenticate", f'{CHALLENGE}, error="invalid_token"'),))


class AuthenticatedApp(App):
    """WSGI application that requires a token for all paths except `public_paths`, including unknown paths."""

    def __init__(self, tokens: Tokens, public_paths: Collection[str], *rest: Any) -> None:
        super().__init__(*rest)
        self.tokens, self.public_paths = tokens, frozenset(public_paths) & self.table.keys()

    def authorize(self, path: str, environ: Environ) -> Problem | None:
        if (problem := super().authorize(path, environ)) or path in self.public_paths:
            return problem
        return self.tokens.check(environ.get("HTTP_AUTHORIZATION", ""))

    def prepare(self, head: RequestHead) -> PreparedRequest | None:
        prepared = super().prepare(head)
        if prepared is None or head.path in self.public_paths:
            return prepared
        # The tokens of the file can change.
        return prepared._replace(is_authorized=lambda: self.authorize(head.path, head.environ) is None)
