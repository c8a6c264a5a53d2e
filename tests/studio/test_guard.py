"""Whoever has no token, or comes from elsewhere, gets nothing, whatever the method and the path."""

import asyncio
import http.client
import json
import os
import shutil
from itertools import product
from pathlib import Path

import httpx
import pytest

from tests.studio.conftest import Studio, serve
from vitrine.http import guard
from vitrine.studio.responses import error

PATHS = ["/api/runs", "/api/runs/small", "/api/runs/small/stream", "/api/openapi.json", "/nothing", "/assets/a/b"]
METHODS = ["GET", "POST", "DELETE", "PUT", "OPTIONS", "HEAD"]


@pytest.fixture
def stranger(studio: Studio):
    with httpx.Client(base_url=studio.url, timeout=20, verify=False) as client:
        yield client


def test_without_the_token_nothing_is_answered(stranger: httpx.Client):
    for method, path in product(METHODS, PATHS):
        answer = stranger.request(method, path)
        assert answer.status_code == 401, (method, path)
        assert method == "HEAD" or "token" in answer.json()["error"], (method, path)


def test_the_page_itself_is_the_same_for_everyone_and_needs_no_token(stranger: httpx.Client, studio: Studio):
    answer = stranger.get("/")
    assert answer.status_code in (200, 503)  # 503: it was not built
    assert studio.token not in answer.text
    assert "set-cookie" not in answer.headers
    assert stranger.get("/assets/none.js").status_code == 404


def test_a_wrong_token_is_refused_wherever_it_stands(studio: Studio, stranger: httpx.Client):
    wrong = (f"Bearer {studio.token[:-1]}", "Bearer wrong", f"Basic {studio.token}", studio.token, "Bearer", "Bearer é")
    for header, path in product(wrong, ("/api/runs", "/api/runs/small/stream")):
        answer = stranger.get(path, headers={"Authorization": header.encode("latin-1")})
        assert answer.status_code == 401, (header, path)
        assert "was restarted" in answer.json()["error"]
    for address in (f"/api/runs?token={studio.token}", f"/api/runs#access={studio.token}"):
        assert stranger.get(address).status_code == 401
    port = studio.url.rpartition(":")[2]
    assert stranger.get("/api/runs", headers={"Cookie": f"vitrine-{port}={studio.token}"}).status_code == 401


def test_cookies_of_other_programs_of_this_machine_lock_nobody_out(studio: Studio):
    for cookie in ('"; \\', "a=b; =; ;;", "x" * 5000, "vitrine-1=other", "é=1"):
        assert studio.client.get("/api/runs", headers={"Cookie": cookie.encode("latin-1")}).status_code == 200


def test_a_foreign_host_is_refused_even_with_the_token(studio: Studio):
    port = studio.url.rpartition(":")[2]
    hosts = (f"evil.example:{port}", "127.0.0.1", "127.0.0.1:1", f"127.0.0.1:{port}.evil.example")
    for method, path, host in product(METHODS, PATHS, hosts):
        answer = studio.client.request(method, path, headers={"Host": host})
        assert answer.status_code == 403, (method, path, host)


def test_a_foreign_origin_is_refused_even_with_the_token(studio: Studio):
    origins = ("http://evil.example", "null", "http://127.0.0.1:1", studio.url.replace("http:", "https:"))
    for method, path, origin in product(METHODS, PATHS, origins):
        answer = studio.client.request(method, path, headers={"Origin": origin})
        assert answer.status_code == 403, (method, path, origin)


def test_its_own_origin_is_welcome_by_each_name(studio: Studio):
    port = studio.url.rpartition(":")[2]
    for name in ("127.0.0.1", "localhost", "[::1]"):
        headers = {"Host": f"{name}:{port}", "Origin": f"http://{name}:{port}"}
        assert studio.client.get("/api/runs", headers=headers).status_code == 200


def test_two_hosts_are_one_too_many(studio: Studio):
    port = studio.url.rpartition(":")[2]
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=20)
    connection.putrequest("GET", "/api/runs", skip_host=True)
    for host in (f"127.0.0.1:{port}", "evil.example"):
        connection.putheader("Host", host)
    connection.endheaders()
    assert connection.getresponse().status in (400, 403)
    connection.close()


def test_it_listens_on_the_loopback_address_alone(studio: Studio):
    port = int(studio.url.rpartition(":")[2])
    files = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]
    if not files[0].is_file():
        pytest.skip("NOT CHECKED on this system: which addresses are listened on is read from /proc/net/tcp")
    rows = [line.split() for file in files if file.is_file() for line in file.read_text().splitlines()[1:]]
    assert {row[1] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A"} == {f"0100007F:{port:04X}"}


def test_every_answer_says_what_the_page_may_load(studio: Studio, stranger: httpx.Client):
    for answer in (studio.get("runs"), studio.get("nothing"), stranger.get("/"), studio.client.get("/assets/none")):
        assert answer.headers["content-security-policy"] == guard.POLICY
        assert "default-src 'self'" in guard.POLICY
        assert "frame-ancestors 'none'" in guard.POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


TRAVERSALS = [
    "..",
    "../small",
    "%2e%2e",
    "..%2fsmall",
    "small%2f..",
    "%2fetc",
    "small%00",
    ".",
    "~",
    "small~2",
    "..\\small",
]


BELOW = ["", "/series?name=loss", "/film/picks", "/stream", "/live", "/health", "/tiles?step=0&mode=value"]


def test_a_path_for_the_name_of_a_run_leads_nowhere(studio: Studio):
    port = int(studio.url.rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)  # which leaves the path as it is
    for name, rest in product(TRAVERSALS, BELOW):
        connection.request("GET", f"/api/runs/{name}{rest}", headers={"Authorization": f"Bearer {studio.token}"})
        answer = connection.getresponse()
        assert answer.status == 404, (name, rest)
        assert "error" in json.loads(answer.read()), (name, rest)
    connection.close()


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "model.safetensors", "..", "", "%2e%2e%2fconfig", "a\0b"]
)
def test_a_path_for_the_name_of_a_tensor_leads_nowhere(studio: Studio, name: str):
    query = {"tensor": name, "step": 0, "mode": "value"}
    assert studio.get("runs/small/tile", **query).status_code == 404
    assert studio.get("runs/small/series", name=f"{name}/weight_norm").status_code == 404
    assert studio.get("runs/small/tensor", name=name, step=1).status_code == 404
    assert studio.get("runs/small/tiles", tensor=name, step=0, mode="value").status_code == 404
    assert studio.get("runs/small/picks", tensor=name, every=2).status_code == 404
    assert studio.get("runs/small/parameter", name=f"{name}[0]", step=1).status_code == 400
    assert studio.get("runs/small/neuron", name=f"{name}[0]", step=1).status_code == 400
    assert studio.post("runs/small/nudge", parameter=f"{name}[0]", step=1, sizes=[0.1]).status_code == 400
    assert studio.get("runs/small/tile", tensor="embedding.weight", step=1, mode=f"memory:{name}").status_code in (
        400,
        404,
    )


def test_files_beside_the_page_are_not_served(studio: Studio):
    for path in ("/assets/../app.py", "/assets/%2e%2e/%2e%2e/app.py", "/assets/..%2f..%2fapp.py", "/app.py"):
        assert studio.client.get(path).status_code == 404


def test_a_run_named_script_is_only_a_name(runs: Path, tmp_path: Path):
    name = "<script>alert(1)<&script>"
    shutil.copytree(runs / "small", tmp_path / "odd" / name)
    with serve(tmp_path / "odd") as studio:
        assert [run["name"] for run in studio.json("runs")["runs"]] == [name]
        answer = studio.client.get("/api/runs/%3Cscript%3Ealert(1)%3C%26script%3E")
        assert answer.json()["name"] == name
        assert answer.headers["content-type"] == "application/json"
        missing = studio.client.get("/api/runs/%3Cscript%3E")
        assert (missing.status_code, missing.headers["content-type"]) == (404, "application/json")


def test_a_name_that_is_no_text_does_no_harm(runs: Path, tmp_path: Path):
    folder = os.fsencode(tmp_path / "odd")
    shutil.copytree(os.fsencode(runs / "small"), folder + b"/caf\xe9")
    with serve(tmp_path / "odd") as studio:
        assert studio.json("runs")["runs"][0]["parameters"] > 0


def test_a_body_that_is_too_long_is_refused_with_and_without_its_length(studio: Studio):
    long = b" " * (guard.TokenGuard.body_bytes + 1)
    assert studio.client.post("/api/plan", content=long).status_code == 413

    def pieces():
        for _ in range(21):
            yield b" " * 2**20

    assert studio.client.post("/api/plan", content=pieces()).status_code == 413
    assert studio.json("runs")["runs"]


def test_json_that_is_nested_without_end_is_refused(studio: Studio):
    content = b'{"settings":' + b"[" * 100_000
    answer = studio.client.post("/api/plan", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert "error" in answer.json()


def test_web_sockets_are_closed():
    sent = []

    async def send(message):
        sent.append(message)

    async def never(*arguments):
        raise AssertionError("it was passed on")

    asyncio.run(guard.TokenGuard(never, guard.local_hosts(1), error, "token")({"type": "websocket"}, never, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
