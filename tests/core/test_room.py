"""A full disk: asked for before the work, known for what it is when it comes, and never tried again."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ajuste.core import room
from ajuste.core.errors import RoomError

ROOT = Path(__file__).parents[2]

STAGE = """
import sys
from pathlib import Path
from ajuste.core.params import Config
from ajuste.core.stage import start

class ToyConfig(Config):
    megabytes: int

def main():
    with start("toy_one", ToyConfig) as stage:
        print("begins", flush=True)
        Path("out").mkdir()
        for number in range(stage.config.megabytes):
            Path(f"out/{number}").write_bytes(bytes(1_000_000))

if __name__ == "__main__":
    main()
"""
PROJECT = """
set -e
mount -t tmpfs -o size=8m tmpfs "$1" && cd "$1" && mkdir data && cp "$2" toy.py
head -c 1000000 /dev/zero > data/a
cat > dvc.yaml <<END
stages: {toy_one: {cmd: python -m toy, deps: [data], params: [compute, toy.one], outs: [out]}}
END
run() { rm -rf out; set +e
  echo "{compute: {dtype: float32, device: cpu, threads: 1, seed: 0}, toy: {one: {megabytes: $1}}}" > params.yaml
  AJUSTE_HOME="$PWD" "$PYTHON" -m toy; echo "code $?"; set -e; }
run 2
head -c 4000000 /dev/zero > data/b
run 2
rm data/b
run 20
grep -c '"kind": "room"' .state/toy_one.json || true
"""


def test_the_disk_of_a_folder_is_asked_for_all_that_goes_there(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    room.ask({tmp_path / "not yet": free / 4, tmp_path: free / 4}, "stage `ppo`")
    with pytest.raises(RoomError, match=r"^stage `ppo` will write about .* free: .* are missing; `ajuste prune"):
        room.ask({tmp_path / "not yet": 0.6 * free, tmp_path: 0.6 * free}, "stage `ppo`")


def test_a_training_asks_for_the_checkpoints_that_stand_at_once() -> None:
    frozen, learns = torch.nn.Linear(10, 10, bias=False).requires_grad_(False), torch.nn.Linear(5, 4, bias=False)
    assert room.for_training([*frozen.parameters(), *learns.parameters()], kept=3) == 3 * 20 * (4 + 4 + 4)


def test_a_full_disk_is_known_behind_other_errors() -> None:
    quota = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    try:
        try:
            raise quota
        except OSError as error:
            raise ValueError("could not save") from error
    except ValueError as caught:
        assert room.was_full(caught)
    with pytest.raises(OSError) as real, Path("/dev/full").open("w") as file:
        file.write("x" * 100_000)
    assert room.was_full(real.value) and not room.was_full(OSError(errno.EIO, "bad sector"))
    assert room.was_full(RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"))


@pytest.mark.skipif(
    subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "true"], capture_output=True).returncode != 0,
    reason="no file system of one's own may be mounted here",
)
def test_a_stage_on_a_full_disk(tmp_path: Path) -> None:
    """A file system of 8 MB: it asks by what it wrote last time, and says what is missing when it is full."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "toy.py").write_text(STAGE)
    env = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": f"{tmp_path / 'disk'}{os.pathsep}{ROOT}"}
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", PROJECT, "sh", str(tmp_path / "disk"),
               str(tmp_path / "toy.py")]  # fmt: skip
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.stdout.split("\n")[:-1] == ["begins", "code 0", "code 4", "begins", "code 4", "1"], done.stderr
    asked, full = [line for line in done.stderr.splitlines() if line.startswith("error[room]")]
    assert "stage `toy_one` will write about 10 MB" in asked and "are missing; `ajuste prune" in asked
    assert "is full" in full and "after stage `toy_one` wrote" in full and "`ajuste prune" in full
    assert "Traceback" not in done.stderr
