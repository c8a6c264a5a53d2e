"""How much compression of the studio's answers saves and costs: `python -m benchmarks.packing RUN`."""

import sys
import time
import zlib

from safetensors.numpy import load_file

from vitrine.runs.film import PICKS, Film
from vitrine.runs.reader import FILM, KEYFRAMES, RunReader
from vitrine.runs.retention import keyframe_path
from vitrine.studio import series
from vitrine.studio.responses import dumps
from vitrine.studio.tiles import keyframes

LEVELS = (1, 4, 6)


def answers(reader: RunReader) -> dict[str, bytes]:
    """One answer of each kind, as it is sent."""
    last, film = keyframe_path(reader.path / KEYFRAMES, keyframes(reader)[-1]), Film(reader.path / FILM)
    return {
        "weights": b"".join(tensor.tobytes() for tensor in load_file(last / "model.safetensors").values()),
        "optimizer state": b"".join(tensor.tobytes() for tensor in load_file(last / "optimizer.safetensors").values()),
        "a frame": film.raw(len(film.steps()) // 2),
        "picks": (film.folder / PICKS).read_bytes(),
        "a curve": dumps(series.series(reader, "loss", 0, -1, 1000)).encode(),
        "layers": dumps(series.layers(reader, "gradient_norm", "tensor", 0, -1, 200)).encode(),
    }


def main(run: str) -> None:
    """Print the size, the compressed share and the speed of each."""
    for name, body in answers(RunReader(run)).items():
        for level in LEVELS:
            start = time.process_time()
            packed = zlib.compress(body, level)
            seconds = max(time.process_time() - start, 1e-9)
            print(f"{name:<16}{len(body):>12,} bytes  level {level}: {len(packed) / len(body):.3f} of it, "
                  f"{len(body) / seconds / 1e6:,.0f} MB/s")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1])
