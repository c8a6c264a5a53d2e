"""From tokens to text, one by one: only whole characters, and never past a stop string."""

from collections.abc import Sequence

from tokenizers import Tokenizer

from vitrine.text.tokenizer import decode

BEFORE = 4  # tokens that the next one is read after: no character has more bytes, and a leading space shows
HALF = "\N{REPLACEMENT CHARACTER}"  # how a tokenizer shows bytes that are no character, or not one yet


class Writer:
    """The text of one continuation.

    Args:
        prompt_ids: some tokenizers decode a token by those before it, so the last of these count.
        stop: strings that end the text, and are left out of it.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.text = ""  # all that was passed on
        self.stopped = False
        self._held = ""  # whole characters that may be the beginning of a stop string
        self._window = list(prompt_ids[-BEFORE:])
        self._known = decode(tokenizer, self._window)

    @property
    def length(self) -> int:
        """Characters so far, those held back too."""
        return len(self.text) + len(self._held)

    def add(self, token: int) -> str:
        """One more token. Returns the text that is certain now, and was not before; often none."""
        self._window.append(token)
        text = decode(self.tokenizer, self._window)
        piece = self._new(text.rstrip(HALF))
        if not text.endswith(HALF):
            self._window = self._window[-BEFORE:]
            self._known = decode(self.tokenizer, self._window)
        return self._pass_on(piece, last=False)

    def finish(self) -> str:
        """No token follows: the rest of the text."""
        return self._pass_on(self._new(decode(self.tokenizer, self._window)), last=True)

    def _new(self, text: str) -> str:
        """What the window's text has beyond what is known; the known part grows by it."""
        known = self._known
        if not text.startswith(known):
            known = known.rstrip(HALF)  # the prompt ended within a character, which is whole now
        if not text.startswith(known) or len(text) <= len(known):
            return ""
        self._known = text
        return text[len(known) :]

    def _pass_on(self, piece: str, last: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + piece
        ends = [place for place in map(text.find, self.stop) if place >= 0]
        if ends:
            self.stopped, certain = True, min(ends)
        else:
            certain = len(text) if last else len(text) - self._doubtful(text)
        self._held = "" if self.stopped else text[certain:]
        self.text += text[:certain]
        return text[:certain]

    def _doubtful(self, text: str) -> int:
        """How many characters at the end could be the beginning of a stop string."""
        longest = max(map(len, self.stop), default=1) - 1
        sizes = range(min(longest, len(text)), 0, -1)
        return next((size for size in sizes if any(stop.startswith(text[-size:]) for stop in self.stop)), 0)
