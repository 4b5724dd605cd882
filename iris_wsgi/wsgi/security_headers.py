"""Response headers that protect the pages of this server (Content Security Policy level 3)."""

import re
from base64 import b64encode
from hashlib import sha256


def content_security_policy(**sources: str) -> str:
    """Returns the policy of a page that loads the given sources only, for example script="'self'"."""
    allowed = "; ".join(f"{name}-src {source}" for name, source in sources.items())
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def security_headers(policy: str) -> tuple[tuple[str, str], ...]:
    """Returns the headers of a page with this policy; frames of other pages cannot contain the page."""
    return (
        ("Content-Security-Policy", f"{policy}; frame-ancestors 'none'"),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
    )


def hash_sources(page: str, element: str) -> str:
    """Returns the sources of the inline elements of this name in a page, by their hashes (section 2.3.1)."""
    texts = re.findall(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
    return " ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in texts)
