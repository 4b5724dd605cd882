"""Who may ask: the tokens in a file, and an application that answers nobody without one of them (RFC 6750)."""

import hashlib
import hmac
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from iris_wsgi.errors import Problem, Unauthorized
from iris_wsgi.settings import BadSetting
from iris_wsgi.wsgi.application import App
from iris_wsgi.wsgi.body import Environ

LOOK_SECONDS = 1.0
MOST_BYTES = 16384
LEAST, MOST = 16, 512
# The letters of RFC 6750, section 2.1.
is_token = re.compile(rb"(?=.{%d,%d}\Z)[A-Za-z0-9._~+/-]+=*" % (LEAST, MOST)).fullmatch
credentials = re.compile(r"bearer +(.+)", re.IGNORECASE | re.ASCII | re.DOTALL).fullmatch
# A challenge has one parameter at least (section 3).
CHALLENGE = 'Bearer realm="iris_wsgi"'
WANTED = "This server wants one of its tokens, as curl -H 'Authorization: Bearer TOKEN' sends it."
WRONG = "The token of this request is none of this server's."


class Tokens:
    """The tokens in a file, one a line: each of them counts, and the first is what goes to other servers."""

    def __init__(self, file: str, tell: Callable[[str, str], None]) -> None:
        """Raises BadSetting. What is wrong with a later content of the file is told to the log."""
        self.file, self.tell = Path(file), tell
        self.wrong = ""
        self.take(self.read())

    def read(self) -> bytes:
        try:
            # A pipe would be waited for, and is empty the next time.
            if not self.file.is_file():
                raise BadSetting("IRIS_TOKEN_FILE names no file")
            with self.file.open("rb") as file:
                content = file.read(MOST_BYTES + 1)
        except OSError as error:
            raise BadSetting(f"IRIS_TOKEN_FILE cannot be read: {error.strerror}") from None
        if len(content) > MOST_BYTES:
            raise BadSetting(f"IRIS_TOKEN_FILE has more than {MOST_BYTES} bytes")
        return content

    def take(self, content: bytes) -> None:
        lines = [line.strip() for line in content.splitlines()]
        tokens = [line for line in lines if line]
        if not tokens:
            raise BadSetting("IRIS_TOKEN_FILE is empty; it holds tokens, one a line")
        if wrong := [i for i, line in enumerate(lines, 1) if line and not is_token(line)]:
            raise BadSetting(
                f"IRIS_TOKEN_FILE has no token in its line {wrong[0]}; one is {LEAST} to {MOST} letters, digits and - . _ ~ + /, "
                "with = at its end or not"
            )
        self.content = content
        self.digests = [hashlib.sha256(token).digest() for token in tokens]
        self.first = tokens[0].decode()

    def look(self) -> None:
        """Takes what the file holds now; where that cannot be used the tokens before it go on counting."""
        try:
            content = self.read()
            if content != self.content:
                self.take(content)
                self.tell("info", f"IRIS_TOKEN_FILE has changed; tokens that count: {len(self.digests)}")
            self.wrong = ""
        except BadSetting as error:
            if str(error) != self.wrong:
                self.wrong = str(error)
                self.tell("error", f"{error}; what it held before goes on counting")

    def fields(self) -> tuple[tuple[str, str]]:
        """What a request to another server has."""
        return (("Authorization", f"Bearer {self.first}"),)

    def check(self, authorization: str) -> Problem | None:
        """What is to be said to who sends this field; None if it holds a token that counts."""
        found = credentials(authorization)
        if found is None:
            return Unauthorized(WANTED, headers=(("WWW-Authenticate", CHALLENGE),))
        given = hashlib.sha256(found[1].encode("utf-8", "replace")).digest()
        # With each, also after a hit: the time tells nothing.
        if any([hmac.compare_digest(given, one) for one in self.digests]):
            return None
        return Unauthorized(WRONG, headers=(("WWW-Authenticate", f'{CHALLENGE}, error="invalid_token"'),))


class AuthenticatedApp(App):
    """An application that answers the paths in `public_paths` to all, and any other, there or not, to who has a token."""

    def __init__(self, tokens: Tokens, public_paths: Collection[str], *rest: Any) -> None:
        super().__init__(*rest)
        self.tokens, self.public_paths = tokens, frozenset(public_paths) & self.table.keys()

    def authorize(self, path: str, environ: Environ) -> Problem | None:
        if (problem := super().authorize(path, environ)) or path in self.public_paths:
            return problem
        return self.tokens.check(environ.get("HTTP_AUTHORIZATION", ""))
