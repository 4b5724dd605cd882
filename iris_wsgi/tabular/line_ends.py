"""Line ends of text: a line feed in most files, a carriage return alone in those of an old Mac and of some devices."""

import re

CARRIAGE_RETURN, LINE_FEED = b"\r", b"\n"
# In a file whose lines end in carriage returns both are exchanged: it is then cut and read like any other, byte for byte.
EXCHANGED = bytes.maketrans(b"\r\n", b"\n\r")
EXCHANGED_TEXT = str.maketrans("\r\n", "\n\r")

# A quote, or the end of a line; carriage returns before a line feed are a part of its end.
tokens = re.compile(rb'"|\r++\n?|\n').finditer


def line_end(head: bytes, whole: bool) -> bytes | None:
    """Returns what ends the first line of a text that begins with `head`; None if more of the text must be seen.

    A line end between quotes does not count, unless there is no other. With `whole` there is no more of the text.
    """
    quoted, first = False, None
    for token in tokens(head):
        if token[0] == b'"':
            quoted = not quoted
            continue
        if token.end() == len(head) and not whole and token[0].endswith(CARRIAGE_RETURN):
            return None
        found = LINE_FEED if token[0].endswith(LINE_FEED) else CARRIAGE_RETURN
        if not quoted:
            return found
        first = first or found
    return (first or LINE_FEED) if whole else None
