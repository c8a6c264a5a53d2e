"""What is refused, and how; and that the server lives on."""

import http.client
import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from tests.serving.conftest import CONTEXT, Served

GOOD = {"model": "small", "prompt": "ab", "max_tokens": 2}


def post(served: Served, body: Any, path: str = "/v1/completions", **headers: str) -> tuple[int, dict[str, Any], Any]:
    connection = http.client.HTTPConnection(urlsplit(served.address).netloc, timeout=30)
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(
        "POST", path, raw, {"Content-Type": "application/json", "Authorization": "Bearer secret"} | headers
    )
    answer = connection.getresponse()
    found = json.loads(answer.read())
    connection.close()
    return answer.status, found, answer.headers


def refusal(served: Served, body: Any, path: str = "/v1/completions", **headers: str) -> tuple[int, dict[str, Any]]:
    status, found, _ = post(served, body, path, **headers)
    assert found.keys() == {"error"}
    assert found["error"].keys() == {"message", "type", "param", "code"}
    return status, found["error"]


@pytest.mark.parametrize(
    ("changes", "param", "message"),
    [
        ({"temperature": -1}, "temperature", "temperature must be at least 0: got -1."),
        ({"temperature": "hot"}, "temperature", 'temperature has a wrong type or value: got "hot".'),
        ({"temperature": True}, "temperature", "temperature has a wrong type or value: got true."),
        ({"top_p": 2}, "top_p", "top_p must be at most 1: got 2."),
        ({"top_p": 0}, "top_p", "top_p must be greater than 0: got 0."),
        ({"n": 0}, "n", "n must be at least 1: got 0."),
        ({"n": 1.5}, "n", "n has a wrong type or value: got 1.5."),
        ({"max_tokens": -1}, "max_tokens", "max_tokens must be at least 0: got -1."),
        ({"max_tokens": 10**9}, "max_tokens", "max_tokens must be at most 100000: got 1000000000."),
        ({"logprobs": 21}, "logprobs", "logprobs must be at most 20: got 21."),
        ({"seed": 2**63}, "seed", "seed must be less than 9223372036854775808: got 9223372036854775808."),
        ({"stop": [""]}, "stop", "stop takes up to 16 strings of 1 to 1000 characters: got 1, of 0 characters."),
        ({"stop": ["a"] * 17}, "stop", "stop takes up to 16 strings of 1 to 1000 characters: got 17"),
        ({"stop": 5}, "stop", "stop has a wrong type or value: got 5."),
        ({"logit_bias": {"999": 1}}, "logit_bias", "logit_bias names the token '999'; the model's are 0 to 256."),
        ({"logit_bias": {"1": 101}}, "logit_bias", "logit_bias[1] must be at most 100: got 101."),
        ({"presence_penalty": 3}, "presence_penalty", "presence_penalty must be at most 2: got 3."),
        ({"best_of": 5}, "best_of", "best_of must equal n: got 5 and 1."),
        ({"suffix": "z"}, "suffix", 'suffix has a wrong type or value: got "z".'),
        ({"tempreature": 1}, "tempreature", "tempreature is not known to this server. Did you mean temperature?"),
        ({"prompt": ""}, "prompt", "The prompt is empty. Give at least one character, or the id of one token."),
        ({"prompt": []}, "prompt", "prompt is an empty list. Give a text, or token ids."),
        ({"prompt": [[]]}, "prompt", "The prompt holds no token. Give at least one."),
        ({"prompt": ["a", 1]}, "prompt", "prompt must be text, token ids, or a list of one of these: got 1."),
        ({"prompt": {"a": 1}}, "prompt", 'prompt must be text, token ids, or a list of one of these: got {"a": 1}.'),
        ({"prompt": [257]}, "prompt", "The prompt holds the token id 257; the model's are 0 to 256."),
        ({"prompt": [-1]}, "prompt", "The prompt holds the token id -1; the model's are 0 to 256."),
        ({"prompt": "\ud83d"}, "prompt", "The prompt holds half of a character (U+D83D, a surrogate) at position 0."),
    ],
)  # fmt: skip
def test_a_wrong_parameter_is_named_with_its_value(served: Served, changes: Any, param: str, message: str) -> None:
    status, error = refusal(served, GOOD | changes)
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert error["message"].startswith(message)


def test_a_prompt_over_the_context_is_refused_with_the_counts(served: Served) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        served.client.completions.create(model="small", prompt="x" * (CONTEXT + 2))
    assert caught.value.code == "context_length_exceeded"
    assert f"The prompt has {CONTEXT + 2} tokens, and the model's context holds {CONTEXT}." in caught.value.message


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"\xff", b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}", b'{"model": NaN}', b"[1]", b"null"]
)
def test_a_body_that_is_no_json_object_is_refused(served: Served, raw: bytes) -> None:
    status, error = refusal(served, raw)
    assert status == 400
    assert error["message"].startswith(("The body is not valid JSON", "The body must be a JSON object"))


def test_a_missing_parameter_is_named(served: Served) -> None:
    assert refusal(served, {"prompt": "a"})[1]["message"] == "model is missing."
    assert refusal(served, {"model": "small"})[1]["param"] == "prompt"


def test_an_unknown_model_is_refused(served: Served) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        served.client.completions.create(model="large", prompt="a")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "There is no model 'large'. This server has 'small'." in caught.value.message


def test_a_body_too_large_is_refused_whether_it_says_so_or_not(served: Served) -> None:
    large = b" " * (8 * 2**20 + 1)
    assert refusal(served, large)[0] == 413
    connection = http.client.HTTPConnection(urlsplit(served.address).netloc, timeout=30)
    connection.request("POST", "/v1/completions", iter([large]), encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_paths_and_methods_that_are_not_there(served: Served) -> None:
    assert refusal(served, {}, "/v1/nothing")[0] == 404
    assert refusal(served, {}, "/v1/models")[0] == 405


def test_chats_need_a_template(served: Served, narrow: Served) -> None:
    chat = {"model": "narrow", "messages": [{"role": "user", "content": "a"}]}
    status, error = refusal(narrow, chat, "/v1/chat/completions")
    assert (status, error["param"]) == (400, "messages")
    assert error["message"].startswith("This model has no chat template")
    wrong = {"model": "small", "messages": [{"role": "tool", "content": "a"}]}
    assert "does not take these messages: no tools" in refusal(served, wrong, "/v1/chat/completions")[1]["message"]
    assert refusal(served, chat | {"model": "small", "messages": []}, "/v1/chat/completions")[1]["param"] == "messages"


def test_another_sites_page_is_refused(served: Served) -> None:
    assert refusal(served, GOOD, Host="evil.example")[0] == 403
    assert refusal(served, GOOD, Origin="http://evil.example")[0] == 403
    assert post(served, GOOD, Origin=served.address)[0] == 200


def test_the_api_key_is_asked_for(narrow: Served) -> None:
    for headers in ({"Authorization": "Bearer wrong"}, {"Authorization": "secret"}, {"Authorization": "Bearer é"}):
        status, error = refusal(narrow, GOOD | {"model": "narrow"}, **headers)
        assert (status, error["type"], error["code"]) == (401, "authentication_error", "invalid_api_key")
    with pytest.raises(openai.AuthenticationError):
        narrow.client.with_options(api_key="wrong").models.list()
    assert narrow.client.models.list().data[0].id == "narrow"
    assert post(narrow, GOOD | {"model": "narrow"})[0] == 200


def eventually(true: Any) -> bool:
    deadline = time.monotonic() + 60
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_a_full_queue_is_said_and_a_departed_client_makes_room(narrow: Served) -> None:
    long = {"model": "narrow", "prompt": "a", "max_tokens": 100_000, "stream": True, "logit_bias": {"256": -100}}
    dropped = narrow.metrics()["vitrine_dropped_requests_total"]
    streams = [narrow.client.completions.create(**long) for _ in range(3)]
    assert next(iter(streams[0])).choices[0].text is not None
    status, found, headers = post(narrow, long | {"stream": False})
    assert (status, found["error"]["type"], headers["Retry-After"]) == (429, "rate_limit_error", "1")
    metrics = narrow.metrics()
    assert (metrics["vitrine_texts_writing"], metrics["vitrine_texts_waiting"]) == (2, 1)
    for stream in streams:
        stream.close()
    assert eventually(lambda: narrow.metrics()["vitrine_texts_writing"] == 0)
    assert narrow.metrics()["vitrine_dropped_requests_total"] == dropped + 3
    assert post(narrow, GOOD | {"model": "narrow"})[0] == 200
    status, error = refusal(narrow, GOOD | {"model": "narrow", "n": 4})
    assert (status, error["param"]) == (400, "n")


def test_a_client_that_goes_away_without_a_stream_is_noticed(narrow: Served) -> None:
    body = json.dumps({"model": "narrow", "prompt": "a", "max_tokens": 100_000, "logit_bias": {"256": -100}}).encode()
    place = urlsplit(narrow.address)
    with socket.create_connection((place.hostname, place.port)) as line:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {place.netloc}\r\nAuthorization: Bearer secret\r\n"
        line.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert eventually(lambda: narrow.metrics()["vitrine_texts_writing"] == 1)
    assert eventually(lambda: narrow.metrics()["vitrine_texts_writing"] == 0)


def test_health_and_metrics(served: Served) -> None:
    before = served.metrics()
    post(served, GOOD)
    after = served.metrics()
    assert after["vitrine_prompt_tokens_total"] - before["vitrine_prompt_tokens_total"] == 2
    assert after["vitrine_generated_tokens_total"] - before["vitrine_generated_tokens_total"] == 2
    count = "vitrine_request_duration_seconds_count"
    assert after[count] - before[count] == 1
    assert after["vitrine_ready"] == 1


def decoding_process(served: Served) -> int:
    """Its number."""
    children = Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children").read_text().split()
    [found] = [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text() == "vitrine decodes\n"]
    return found


def test_the_decoding_process_is_started_again_when_it_dies(served: Served) -> None:
    stream = iter(served.client.completions.create(**GOOD | {"max_tokens": 50_000}, stream=True))
    next(stream)
    os.kill(decoding_process(served), signal.SIGKILL)
    with pytest.raises(openai.APIError, match="ended unexpectedly"):
        list(stream)
    assert eventually(lambda: served.metrics()["vitrine_ready"] == 1)
    assert post(served, GOOD)[0] == 200
