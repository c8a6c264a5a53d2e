"""What a page reads of a run: the listing, the run, its curves, its stream, its film."""

import json
import math
import shutil
import subprocess
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.studio.conftest import SMALL, Studio, serve, until
from tests.warm import Vitrine
from vitrine.inspection.health_by_history import history_headline
from vitrine.model.inventory import inventory
from vitrine.runs.film import Film
from vitrine.runs.reader import RunReader
from vitrine.runs.records import StepRecord
from vitrine.studio import events
from vitrine.studio import series as curves
from vitrine.training.create import lock
from vitrine.training.pace import Pace


@pytest.fixture(scope="module")
def reader(runs: Path) -> RunReader:
    return RunReader(runs / "small")


def events_of(studio: Studio, run: str, count: int, cursor: str = "") -> list[dict]:
    """The first events of a stream."""
    found = []
    with studio.client.stream("GET", f"/api/runs/{run}/stream", params={"cursor": cursor}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: "):
                found.append(json.loads(line.removeprefix("data: ")))
            if len(found) == count:
                break
    return found


def test_the_listing_has_each_run_once_with_its_figures(studio: Studio, reader: RunReader):
    (row,) = [run for run in studio.json("runs")["runs"] if run["name"] == "small"]
    assert row["parameters"] == sum(plan.parameters for plan in inventory(reader.config.model))
    assert (row["steps"], row["steps_made"], row["training"], row["architecture"]) == (160, 160, False, "gpt2")
    assert row["train_loss"] == reader.steps()[-1].loss
    last = reader.evaluations()[-1]
    assert (row["val_loss"], row["val_tokens"], row["val_whole"]) == (last.loss, last.tokens, last.whole)


def test_a_run_says_who_chose_each_hyperparameter_and_how(studio: Studio):
    run = studio.json("runs/small")
    assert set(run["chosen"]) == {f"{section}.{key}" for section, keys in run["config"].items() for key in keys}
    assert run["chosen"]["training.steps"] == {"by": "you", "how": "given when the run was started"}
    assert run["chosen"]["model.d_ff"] == {"by": "derived", "how": "4 times model.d_model"}


def test_a_run_has_a_headline_by_its_history_only(studio: Studio, reader: RunReader):
    assert studio.json("runs/small/headline") == {"headline": history_headline(reader)}


def test_a_run_that_trains_says_the_time_left_and_its_disk(studio: Studio, runs: Path):
    ended = studio.json("runs/small")
    size = sum(path.stat().st_size for path in (runs / "small").rglob("*") if path.is_file())
    assert (ended["left_s"], ended["disk_expected_bytes"]) == (None, None)
    assert ended["disk_bytes"] == pytest.approx(size, rel=0.1)  # SQLite's shared file comes and goes
    with lock(runs / "small"):  # as its trainer does
        reader = RunReader(runs / "small")
        told = studio.json("runs/small")
        (event,) = events_of(studio, "small", 1)
    for answer in (told, event):
        assert answer["left_s"] == round(Pace.of(reader).left_s(160), 1)
        assert answer["disk_expected_bytes"] == pytest.approx(size, rel=0.2)


def test_a_damaged_run_is_listed_with_the_reason_and_spoils_no_other(runs: Path, tmp_path: Path):
    shutil.copytree(runs / "small", tmp_path / "a" / "small")
    shutil.copytree(runs / "small", tmp_path / "b" / "small")
    (tmp_path / "b" / "broken").mkdir()
    (tmp_path / "b" / "broken" / "config.toml").write_text("not toml at all")
    with serve(tmp_path / "a", tmp_path / "b", tmp_path / "none yet") as studio:
        listing = studio.json("runs")
        assert {run["name"] for run in listing["runs"]} == {"small", "small~2"}
        assert [row["name"] for row in listing["unreadable"]] == ["broken"]
        assert "not valid TOML" in listing["unreadable"][0]["error"]
        shutil.rmtree(tmp_path / "b" / "small")
        gone = studio.get("runs/small~2")
        assert gone.status_code == 404
        assert "small" in gone.json()["error"]
        assert studio.get("runs/broken").status_code == 400


def test_a_run_says_all_that_a_page_needs_to_open_it(studio: Studio, reader: RunReader):
    run = studio.json("runs/small")
    assert run["config"] == reader.config.model_dump(mode="json")
    plans = inventory(reader.config.model)
    assert [t["name"] for t in run["tensors"]] == [plan.name for plan in plans]
    assert [tuple(t["shape"]) for t in run["tensors"]] == [plan.shape for plan in plans]
    assert run["parameters"] == sum(plan.parameters for plan in plans)
    assert len(run["vocab"]) == reader.config.model.vocab_size
    assert {"T", "e", " ", "\n"} <= set(run["vocab"])
    assert run["guessing_loss"] == math.log(reader.config.model.vocab_size)
    assert run["ended"] == reader.result()
    assert run["best_step"] == reader.best_step()
    assert {0, 150, 160} <= set(run["keyframes"])
    assert [e["kind"] for e in run["events"]] == ["born", "steps"]
    assert run["film"]["steps"] == Film(reader.path / "film").steps().tolist()
    assert run["statistics_every"] == reader.layout().every


def test_json_never_holds_what_is_not_finite():
    from vitrine.studio.responses import dumps

    found = dumps({"a": [float("nan"), 1.5, float("-inf")], "b": np.float32("nan"), "c": {"d": (math.inf, "ä")}})
    assert json.loads(found) == {"a": [None, 1.5, None], "b": None, "c": {"d": [None, "ä"]}}


@pytest.mark.parametrize(
    "name", ["loss", "gradient_norm", "learning_rate", "memory_bytes", "tokens_per_s", "validation"]
)
def test_a_curve_of_few_points_is_whole(studio: Studio, reader: RunReader, name: str):
    found = studio.json("runs/small/series", name=name, pixels=1000)
    if name == "validation":
        expected = {e.step: e.loss for e in reader.sampled_evaluations()}
    elif name == "tokens_per_s":
        expected = {s.step: reader.config.tokens_per_step / s.duration_s for s in reader.steps()}
    else:
        expected = {s.step: getattr(s, name) for s in reader.steps()}
    assert dict(zip(found["steps"], found["low"], strict=True)) == expected
    assert found["high"] == found["low"]


def test_a_curve_of_a_tensor_is_the_recorded_statistic(studio: Studio, reader: RunReader):
    name = "blocks.1.mlp.expand.weight"
    found = studio.json("runs/small/series", name=f"{name}/update_norm", pixels=1000)
    table = reader.statistics(name)
    assert found["steps"] == table["step"].tolist()
    assert found["low"] == table["update_norm"].astype(float).tolist()


def test_every_curve_that_a_run_names_is_served(studio: Studio, reader: RunReader):
    run = studio.json("runs/small")
    parts = ["embedding", "positions", "blocks.0", "blocks.1", "final_norm"]
    names = [f"{name}/{s}" for name in ("embedding.weight", *parts) for s in run["statistics"]]
    assert len(names) == 6 * 7
    for name in (*run["series"], *names):
        assert studio.json("runs/small/series", name=name)["steps"], name


def test_the_curve_of_a_part_is_made_of_all_its_tensors(studio: Studio, reader: RunReader):
    names = [plan.name for plan in inventory(reader.config.model) if plan.name.startswith("blocks.1.")]
    tables = [reader.statistics(name) for name in names]
    found = studio.json("runs/small/series", name="blocks.1/gradient_norm")
    squares = sum(table["gradient_norm"].astype(float) ** 2 for table in tables)
    assert found["low"] == pytest.approx(np.sqrt(squares).tolist(), rel=1e-12)
    found = studio.json("runs/small/series", name="blocks.1/update_max")
    assert found["high"] == np.max([table["update_max"] for table in tables], axis=0).astype(float).tolist()
    found = studio.json("runs/small/series", name=f"{names[1]}/update_ratio")
    pairs = zip(tables[1]["update_norm"].tolist(), tables[1]["weight_norm"].tolist(), strict=True)
    assert found["low"] == [update / weight if weight else None for update, weight in pairs]
    assert found["low"][0] is None  # a bias is born at zero


@pytest.mark.parametrize(("by", "rows"), [("part", 5), ("tensor", 36)])
def test_all_layers_come_at_once_on_the_same_steps(studio: Studio, reader: RunReader, by: str, rows: int):
    found = studio.json("runs/small/layers", statistic="update_ratio", by=by, first=20, last=99, pixels=10)
    assert len(found["rows"]) == rows
    assert sum(row["parameters"] for row in found["rows"]) == sum(p.parameters for p in inventory(reader.config.model))
    for row in found["rows"]:
        one = studio.json("runs/small/series", name=f"{row['name']}/update_ratio", first=20, last=99, pixels=10)
        assert {key: one[key] for key in ("steps", "low", "high")} == {"steps": found["steps"]} | {
            key: row[key] for key in ("low", "high")
        }
    assert studio.get("runs/small/layers", statistic="update_rate").json()["error"].endswith("update_ratio?")


def test_a_run_says_what_its_training_takes_of_memory_and_took(studio: Studio, reader: RunReader):
    memory, count = studio.json("runs/small")["memory"], sum(p.parameters for p in inventory(reader.config.model))
    assert [memory["computed"][part] for part in ("parameters", "gradients", "optimizer")] == [4 * count] * 2 + [
        8 * count
    ]
    assert memory["computed"]["activations"] > 0
    assert memory["measured_peak_bytes"] == max(s.memory_bytes for s in reader.steps())


def test_every_verdict_names_the_curves_that_show_it(studio: Studio):
    for verdict in studio.json("runs/small/health")["verdicts"]:
        plot = verdict["plot"]
        assert (plot is None) == (verdict["level"] == "unknown"), verdict
        if plot:
            assert 0 <= plot["first"] <= plot["last"] <= 160
            assert bool(plot["series"]) != bool(plot["points"])
            for name in plot["series"]:
                assert studio.json("runs/small/series", name=name, first=plot["first"], last=plot["last"])["steps"]


def test_a_curve_of_few_pixels_keeps_the_extremes_of_each(studio: Studio, reader: RunReader):
    losses = [s.loss for s in reader.steps()]
    found = studio.json("runs/small/series", name="loss", first=10, last=109, pixels=10)
    assert found["steps"] == list(range(10, 110, 10))
    assert found["low"] == [min(losses[i : i + 10]) for i in range(10, 110, 10)]
    assert found["high"] == [max(losses[i : i + 10]) for i in range(10, 110, 10)]


def test_what_is_not_finite_is_left_out_of_a_curve():
    steps = np.arange(6)
    values = np.array([1.0, np.nan, 3.0, np.inf, np.nan, np.nan])
    _, low, high = curves.downsample(steps, values, 3)
    assert (low[:2].tolist(), high[:2].tolist()) == ([1.0, 3.0], [1.0, 3.0])
    assert np.isnan([low[2], high[2]]).all()


def test_an_unknown_curve_names_the_nearest(studio: Studio):
    answer = studio.get("runs/small/series", name="lossy")
    assert answer.status_code == 404
    assert "Did you mean loss?" in answer.json()["error"]


def test_the_stream_begins_with_everything_and_goes_on_from_a_cursor(studio: Studio, reader: RunReader):
    (first,) = events_of(studio, "small", 1)
    assert [row[:2] for row in first["steps"]] == [[s.step, s.loss] for s in reader.steps()]
    assert len(first["evaluations"]) == len(reader.evaluations())
    assert first["film_steps"][-1] == 160
    assert (first["steps_made"], first["training"]) == (160, False)
    (second,) = events_of(studio, "small", 1, first["cursor"])
    assert [second[part] for part in ("steps", "evaluations", "samples", "events", "film_steps")] == [[]] * 5
    assert second["cursor"] == first["cursor"]


@pytest.mark.parametrize("cursor", ["x", "1.2.3", "1.2.3.4.5.6", "1.2.3.4.99999999999999999999", "1;DROP TABLE steps"])
def test_a_cursor_that_is_none_is_refused(studio: Studio, cursor: str):
    assert studio.get("runs/small/stream", cursor=cursor).status_code == 400


def test_a_long_run_comes_thinned_with_its_extremes():
    losses = np.sin(np.arange(9000.0))
    losses[4321], losses[5678] = 50, -50
    kept = events.thinned([StepRecord(i, loss, 0, 0, 0, 0, 0) for i, loss in enumerate(losses)])
    assert len(kept) <= events.STEPS
    assert {4321, 5678, 8999} <= {record.step for record in kept}
    assert [record.step for record in kept] == sorted({record.step for record in kept})


def test_the_stream_follows_a_run_that_grows_and_the_live_picture_with_it(runs: Path, tmp_path: Path, book_file: Path):
    (tmp_path / "grows").mkdir()
    command = ["train", book_file, "--run", tmp_path / "grows/new", *SMALL]
    with serve(tmp_path / "grows") as studio, Vitrine(command, stderr=subprocess.DEVNULL) as training:
        until(lambda: studio.json("runs")["runs"])
        seen, steps, live = [], {}, set()
        with studio.client.stream("GET", "/api/runs/new/stream") as answer:
            for line in answer.iter_lines():
                if not line.startswith("data: "):
                    continue
                seen.append(json.loads(line[6:]))
                for step, loss, *_ in seen[-1]["steps"]:
                    assert step not in steps
                    steps[step] = loss
                picture = studio.get("runs/new/live")
                if picture.status_code == 200:
                    live.add(int(picture.headers["x-step"]))
                    assert int(picture.headers["x-shape"]) * 4 == len(picture.content)
                if not seen[-1]["training"] and seen[-1]["steps_made"] == 160:
                    break
        training.wait(60)
        assert len(seen) > 2
        assert any(event["training"] for event in seen)
        assert live
        assert any(event["live_step"] is not None for event in seen)
        assert steps == {s.step: s.loss for s in RunReader(tmp_path / "grows/new").steps()}
        shutil.rmtree(tmp_path / "grows/new")
        assert studio.get("runs/new/stream").status_code == 404


def test_a_stream_says_so_when_its_run_goes(runs: Path, tmp_path: Path):
    shutil.copytree(runs / "small", tmp_path / "r" / "small")
    with serve(tmp_path / "r") as studio:
        timer = threading.Timer(0.5, lambda: shutil.rmtree(tmp_path / "r/small"))
        timer.start()
        found = events_of(studio, "small", 2)
        timer.join()
    assert "small" in found[1]["error"]


def test_frames_and_picks_are_those_of_the_files(studio: Studio, reader: RunReader):
    film = Film(reader.path / "film")
    for number, step in enumerate(film.steps()):
        answer = studio.get(f"runs/small/film/{number}")
        assert answer.content == film.raw(number)
        assert (answer.headers["x-step"], answer.headers["x-exact"]) == (str(step), "false")
    assert studio.get("runs/small/film/picks").content == (reader.path / "film/picks.bin").read_bytes()
    assert studio.get(f"runs/small/film/{len(film.steps())}").status_code == 404


def test_the_film_s_birth_is_that_of_the_first_keyframe(studio: Studio, reader: RunReader):
    born = load_file(reader.path / "keyframes/step-00000000/model.safetensors")
    shown = Film(reader.path / "film").values.indices
    expected = np.concatenate([born[name].ravel()[grid.ravel()] for name, grid in shown.items()])
    assert studio.get("runs/small/film/birth").content == expected.tobytes()


def test_what_cannot_change_is_kept_for_good_only_for_the_run_that_is_meant(studio: Studio):
    identity = studio.json("runs/small")["identity"]
    for path in ("film/0", "film/picks", "film/birth", "tile?tensor=embedding.weight&step=0&mode=value"):
        joint = "&" if "?" in path else "?"
        kept = studio.client.get(f"/api/runs/small/{path}{joint}v={identity}")
        assert "immutable" in kept.headers["cache-control"]
        plain = studio.client.get(f"/api/runs/small/{path}")
        assert "no-cache" in plain.headers["cache-control"]
        again = studio.client.get(f"/api/runs/small/{path}", headers={"If-None-Match": plain.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert studio.client.get(f"/api/runs/small/{path}{joint}v=another").status_code == 409


def test_what_shrinks_comes_packed_and_numbers_do_not(studio: Studio):
    def ask(path: str, **headers: str) -> "tuple[httpx.Response, int]":
        with studio.client.stream("GET", f"/api/{path}", headers=headers) as answer:
            raw = b"".join(answer.iter_raw())
        return answer, len(raw)

    for path in ("runs/small", "runs/small/series?name=loss", "runs/small/film/picks", "openapi.json"):
        answer, packed = ask(path)
        assert answer.headers["content-encoding"] == "gzip", path
        assert "accept-encoding" in answer.headers["vary"].lower()
        plain, whole = ask(path, **{"Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert packed < 0.6 * whole
        assert (
            studio.client.get(f"/api/{path}").content
            == studio.client.get(f"/api/{path}", headers={"Accept-Encoding": "identity"}).content
        )
    for path in ("runs/small/film/0", "runs/small/film/birth", "runs/small/tiles?step=150&mode=value", "starting"):
        answer, size = ask(path)
        assert "content-encoding" not in answer.headers, path
        assert size == int(answer.headers["content-length"])


def test_events_are_never_held_back_to_be_packed(studio: Studio):
    with studio.client.stream("GET", "/api/runs/small/stream") as answer:
        assert "content-encoding" not in answer.headers
        assert next(answer.iter_lines())


def test_a_packed_answer_that_the_page_has_is_not_sent_again(studio: Studio):
    query = {"v": studio.json("runs/small")["identity"]}
    for accepted in ("gzip", "identity"):
        headers = {"Accept-Encoding": accepted}
        first = studio.client.get("/api/runs/small/film/picks", params=query, headers=headers)
        headers["If-None-Match"] = first.headers["etag"]
        again = studio.client.get("/api/runs/small/film/picks", params=query, headers=headers)
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]


def test_there_is_no_live_picture_of_a_run_that_does_not_train(studio: Studio, runs: Path):
    assert studio.get("runs/small/live").status_code == 204
    assert not (runs / "small/live/wanted").exists()


def test_the_page_is_served_or_says_how_it_is_built(studio: Studio):
    from vitrine.studio.app import NO_PAGE, PAGE

    answer = studio.client.get("/")
    if (PAGE / "index.html").is_file():
        assert answer.text == (PAGE / "index.html").read_text(encoding="utf-8")
    else:
        assert (answer.status_code, answer.json()["error"]) == (503, NO_PAGE)


def test_every_error_has_one_shape(studio: Studio):
    for answer, status in (
        (studio.get("nothing"), 404),
        (studio.client.delete("/api/runs"), 405),
        (studio.get("runs/small/series"), 422),
        (studio.get("runs/small/series", name="loss", pixels=0), 422),
        (studio.client.post("/api/plan", content=b"{"), 422),
    ):
        assert answer.status_code == status
        assert list(answer.json()) == ["error"]
        assert answer.json()["error"].endswith((".", "'."))
