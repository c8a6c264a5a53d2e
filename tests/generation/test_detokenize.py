"""Text as it comes: whole characters, and nothing of a stop string."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrine.generation.detokenize import Writer
from vitrine.text.tokenizer import byte_tokenizer, train_bpe

BYTES = byte_tokenizer()


def pieces(text: str | bytes, stop: tuple[str, ...] = (), prompt: bytes = b"") -> list[str]:
    writer = Writer(BYTES, list(prompt), stop)
    raw = text.encode() if isinstance(text, str) else text
    found = []
    for token in raw:
        found.append(writer.add(token))
        if writer.stopped:
            break
    found.append(writer.finish())
    assert "".join(found) == writer.text
    return [piece for piece in found if piece]


def test_a_stop_string_over_several_tokens_is_left_out_and_never_shown_in_part() -> None:
    assert pieces("one END two", ("END",)) == ["o", "n", "e", " "]


def test_what_only_began_like_a_stop_string_is_shown_when_that_is_sure() -> None:
    assert pieces("EN, ENDE", ("END!",)) == ["EN,", " ", "END", "E"]


def test_the_first_of_several_stop_strings_counts() -> None:
    assert "".join(pieces("a\n\nb###c", ("###", "\n\n"))) == "a"


def test_a_stop_string_of_several_bytes_a_character_is_found() -> None:
    assert "".join(pieces("ça va → là", ("→ l",))) == "ça va "


def test_a_stop_string_inside_one_token_cuts_it() -> None:
    tokenizer = train_bpe(iter(["the cat the cat the cat"]), 262)
    writer = Writer(tokenizer, [], ("a",))
    for token in tokenizer.encode("the cat").ids:
        writer.add(token)
    assert (writer.text, writer.stopped) == ("the c", True)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_character_that_began_in_the_prompt_is_written_whole(cut: int) -> None:
    smile = "🙂".encode()
    assert pieces(smile[cut:] + b"!", prompt=b"ab" + smile[:cut]) == ["🙂", "!"]


def expected(text: str, stop: tuple[str, ...]) -> str:
    """Without the stop string that is complete first; of two, the longer."""
    ends = [(text.index(one) + len(one), text.index(one)) for one in stop if one in text]
    return text[: min(ends)[1]] if ends else text


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.text("ab🙂\N{REPLACEMENT CHARACTER}", max_size=14), st.lists(st.text("ab🙂", min_size=1, max_size=4), max_size=3)
)
def test_the_text_is_what_stands_before_the_stop_string_that_is_complete_first(text: str, stop: list[str]) -> None:
    shown = "".join(pieces(text, tuple(stop)))
    assert shown == expected(text, tuple(stop))
