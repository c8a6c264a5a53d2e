"""What OpenAI's own client gets."""

import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import vitrine
from tests.serving.conftest import CONTEXT, Served, serving

ASK = {"model": "small", "prompt": "The statement", "max_tokens": 24}


def ask(served: Served, **changes: Any) -> Any:
    return served.client.completions.create(**(ASK | changes))


def test_greedy_text_is_that_of_transformers_and_of_generate(served: Served, tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = vitrine.open_run(served.run)
    run.export(tmp_path / "hf")
    model, tokenizer = (kind.from_pretrained(tmp_path / "hf") for kind in (AutoModelForCausalLM, AutoTokenizer))
    ids = tokenizer(ASK["prompt"], return_tensors="pt").input_ids
    theirs = model.generate(ids, do_sample=False, max_new_tokens=24)[0, ids.shape[1] :]
    ours = ask(served, temperature=0, logprobs=0).choices[0]
    assert ours.text == tokenizer.decode(theirs)
    assert ASK["prompt"] + ours.text == run.generate(ASK["prompt"], 24, temperature=0).text
    assert len(ours.logprobs.tokens) == 24


def test_a_seed_gives_the_text_that_generate_writes(served: Served) -> None:
    run = vitrine.open_run(served.run)
    texts = [ask(served, seed=seed).choices[0].text for seed in (5, 5, 6)]
    assert texts[0] == texts[1] != texts[2]
    assert "The statement" + texts[2] == run.generate("The statement", 24, seed=6).text


def test_beside_sixteen_others_the_text_and_every_bit_of_its_probabilities_are_the_same(served: Served) -> None:
    asked = {"seed": 11, "temperature": 1.0, "logprobs": 3, "max_tokens": 40}
    alone = ask(served, **asked).choices[0]
    start, stop = threading.Barrier(17), threading.Event()

    def other(number: int) -> int:
        start.wait()
        count = 0
        while not stop.is_set():
            ask(served, prompt="Some other text " * (number % 3) + "x", seed=number, max_tokens=5 + 7 * (number % 5))
            count += 1
        return count

    with ThreadPoolExecutor(16) as others:
        counts = [others.submit(other, number) for number in range(16)]
        start.wait()
        among, busy = [], 0.0
        for _ in range(6):
            among.append(ask(served, **asked).choices[0])
            busy = max(busy, served.metrics()["vitrine_texts_writing"])
        stop.set()
    assert busy > 3
    assert all(count.result() > 0 for count in counts)
    for one in among:
        assert one.text == alone.text
        assert one.logprobs.token_logprobs == alone.logprobs.token_logprobs
        assert one.logprobs.top_logprobs == alone.logprobs.top_logprobs


def test_a_text_that_is_not_drafted_has_the_same_bits(served: Served, tmp_path: Any) -> None:
    bare = shutil.copytree(served.run, tmp_path / served.run.name, ignore=shutil.ignore_patterns("tokens"))
    asked = {"seed": 3, "temperature": 1.0, "logprobs": 3, "max_tokens": 90}
    with serving(bare) as undrafted:
        assert re.search(r"drafted from [\d,]{5,} tokens", served.second_line)
        assert "is not drafted: the run's training text is missing" in undrafted.second_line
        assert ask(undrafted, **asked).choices == ask(served, **asked).choices


def test_a_stream_is_the_text_in_pieces(served: Served) -> None:
    whole = ask(served, seed=1)
    parts = [*ask(served, seed=1, stream=True, stream_options={"include_usage": True})]
    assert "".join(part.choices[0].text for part in parts[:-1]) == whole.choices[0].text
    assert [part.choices[0].finish_reason for part in parts[:-1]] == [None] * (len(parts) - 2) + ["length"]
    assert len(parts) > 10
    assert parts[-1].choices == []
    assert parts[-1].usage.model_dump() == whole.usage.model_dump()
    assert whole.usage.completion_tokens == 24
    assert whole.usage.prompt_tokens == len(ASK["prompt"])


def test_n_texts_differ_and_the_first_is_that_of_n_one(served: Served) -> None:
    texts = [choice.text for choice in ask(served, n=3, seed=2, temperature=1).choices]
    assert len(set(texts)) == 3
    assert texts[0] == ask(served, seed=2, temperature=1).choices[0].text


def test_many_prompts_of_text_or_ids_are_answered_in_order(served: Served) -> None:
    prompts = ["The", "A statement", "x" * 20]
    texts = [choice.text for choice in ask(served, prompt=prompts, seed=4, n=2).choices]
    ids = [choice.text for choice in ask(served, prompt=[list(p.encode()) for p in prompts], seed=4, n=2).choices]
    single = [choice.text for prompt in prompts for choice in ask(served, prompt=prompt, seed=4, n=2).choices]
    assert texts == ids == single


def test_a_stop_string_ends_the_text_and_is_never_sent(served: Served) -> None:
    whole = ask(served, temperature=0, max_tokens=30).choices[0].text
    stop = whole[9:13]
    before = whole[: whole.index(stop)]
    answer = ask(served, temperature=0, max_tokens=30, stop=["never", stop]).choices[0]
    assert (answer.text, answer.finish_reason) == (before, "stop")
    parts = [*ask(served, temperature=0, max_tokens=30, stop=stop, stream=True)]
    assert "".join(part.choices[0].text for part in parts) == before
    assert parts[-1].choices[0].finish_reason == "stop"


def test_a_character_of_several_bytes_is_streamed_whole(served: Served) -> None:
    # The bytes of → and nothing else can be written: whole characters must come, and � only at an end within one.
    bias = {str(byte): 100 for byte in "→".encode()}
    asked = {"logit_bias": bias, "seed": 3, "temperature": 1.0, "max_tokens": 60, "presence_penalty": 0}
    parts = [part.choices[0].text for part in ask(served, stream=True, **asked)]
    whole = ask(served, **asked).choices[0].text
    assert "".join(parts) == whole
    assert "→" in whole


def test_echo_comes_with_the_log_probabilities_of_the_prompt(served: Served) -> None:
    import torch

    run = vitrine.open_run(served.run)
    ids = list(b"The statement")
    with torch.no_grad():
        logprobs = run.model()(torch.tensor([ids]))[0].log_softmax(-1)
    for prompt in ("The statement", ids):
        answer = ask(served, prompt=prompt, echo=True, logprobs=2, max_tokens=1, temperature=0).choices[0]
        told = answer.logprobs
        assert answer.text.startswith("The statement")
        assert told.tokens[:3] == ["T", "h", "e"]
        assert told.text_offset == [*range(len(ids) + 1)]
        assert told.token_logprobs[0] is None
        assert told.top_logprobs[0] is None
        expected = [float(logprobs[place, token]) for place, token in enumerate(ids[1:])]
        assert told.token_logprobs[1:-1] == pytest.approx(expected, abs=1e-4)
        assert told.token_logprobs[-1] == pytest.approx(float(logprobs[-1].max()), abs=1e-4)
        best = logprobs[0].topk(2)
        assert {ord(name) for name in told.top_logprobs[1]} - {ids[1]} <= set(best.indices.tolist())


def test_echo_alone_repeats_the_prompt(served: Served) -> None:
    answer = ask(served, echo=True, max_tokens=0, logprobs=0)
    assert answer.choices[0].text == "The statement"
    assert len(answer.choices[0].logprobs.tokens) == 13
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (0, "length")
    parts = [*ask(served, echo=True, max_tokens=3, stream=True, temperature=0)]
    assert parts[0].choices[0].text == "The statement"


def test_the_end_of_text_ends_it_and_has_its_log_probability(served: Served) -> None:
    answer = ask(served, logit_bias={"256": 100}, echo=True, logprobs=1, max_tokens=5)
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason) == ("The statement", "stop")
    assert len(choice.logprobs.token_logprobs) == 13 + 1
    assert choice.logprobs.tokens[-1] == "<|endoftext|>"
    assert choice.logprobs.token_logprobs[-1] < -3  # the model's own, whatever the bias


def test_decoding_hyperparameters_act(served: Served) -> None:
    greedy = ask(served, temperature=0).choices[0].text
    assert ask(served, temperature=2, extra_body={"top_k": 1}).choices[0].text == greedy
    assert ask(served, temperature=2, top_p=1e-6).choices[0].text == greedy
    assert ask(served, temperature=2, extra_body={"min_p": 1.0}).choices[0].text == greedy
    assert ask(served, temperature=0, frequency_penalty=2, presence_penalty=2).choices[0].text != greedy
    assert ask(served, temperature=0, extra_body={"repetition_penalty": 2.0}).choices[0].text != greedy


def test_a_text_longer_than_the_context_goes_on(served: Served) -> None:
    answer = ask(served, prompt="x" * CONTEXT, max_tokens=2 * CONTEXT, temperature=0)
    run = vitrine.open_run(served.run)
    assert answer.usage.completion_tokens == 2 * CONTEXT
    assert "x" * CONTEXT + answer.choices[0].text == run.generate("x" * CONTEXT, 2 * CONTEXT, temperature=0).text


def test_a_chat_goes_through_the_template(served: Served) -> None:
    messages: Any = [{"role": "system", "content": "Be"}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    answer = served.client.chat.completions.create(
        model="small", messages=messages, temperature=0, max_completion_tokens=9, logprobs=True, top_logprobs=2
    )
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == ask(served, prompt="s:Be\nu:Hi\na:", temperature=0, max_tokens=9).choices[0].text
    assert [len(entry.top_logprobs) for entry in choice.logprobs.content] == [2] * 9
    parts = served.client.chat.completions.create(
        model="small", messages=messages, temperature=0, max_tokens=9, stream=True
    )
    deltas = [part.choices[0].delta for part in parts]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == choice.message.content


def test_models_are_listed(served: Served) -> None:
    [model] = served.client.models.list().data
    assert (model.id, model.owned_by) == ("small", "vitrine")
    assert served.client.models.retrieve("small").id == "small"
