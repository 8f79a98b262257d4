"""What a stage tells its libraries before they are loaded, and that it reaches them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from ajuste.core import arithmetic
from ajuste.core.params import Compute, parse_yaml
from tests.made.portable import ROOT, process, recorded

OUTSIDE = {"ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "7", "GLIBC_TUNABLES": "glibc.malloc.check=0"}
PROBE = "import json, os; print(json.dumps([os.getpid(), dict(os.environ)]))\n"


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A folder with a package that pins as tasks/ does, and a module in it that prints its environment."""
    (tmp_path / "room").mkdir()
    (tmp_path / "room/__init__.py").write_text((ROOT / "tasks/__init__.py").read_text())
    (tmp_path / "room/probe.py").write_text(PROBE)
    return tmp_path


def probe(room: Path, compute: str, command: list[str], **outside: str) -> tuple[bool, dict[str, str]]:
    """(whether it is still the process that was started, its environment)."""
    (room / "params.yaml").write_text(compute)
    inherited = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_NUM_THREADS")}
    env = {**inherited, "PYTHONPATH": f"{room}{os.pathsep}{ROOT}", **outside}
    with subprocess.Popen([sys.executable, *command], cwd=room, env=env, stdout=subprocess.PIPE, text=True) as started:
        pid, found = json.loads(started.communicate()[0])
    return pid == started.pid, found


MODULE = ["-m", "room.probe"]


def test_every_stage_has_its_threads_and_spins_briefly(room: Path) -> None:
    _, found = probe(room, "compute: {threads: 3}\n", MODULE)
    assert (found["OMP_NUM_THREADS"], found["GOMP_SPINCOUNT"]) == ("3", arithmetic.SPINS)
    assert not arithmetic.PORTABLE.keys() & found.keys() and "GLIBC_TUNABLES" not in found
    _, found = probe(room, "compute: {threads: 3}\n", MODULE, GOMP_SPINCOUNT="0", OMP_NUM_THREADS="7")
    assert (found["OMP_NUM_THREADS"], found["GOMP_SPINCOUNT"]) == ("3", "0"), "a person's own count of spins stays"


def test_a_portable_stage_starts_itself_anew_with_what_it_needs(room: Path) -> None:
    same, found = probe(room, "compute: {threads: 1, portable: true}\n", MODULE, **OUTSIDE)
    assert same and {**found, **arithmetic.PORTABLE} == found and found["OMP_NUM_THREADS"] == "1"
    assert found["GLIBC_TUNABLES"] == f"glibc.malloc.check=0:{arithmetic.HWCAPS}"
    assert probe(room, "compute: {threads: 1, portable: true}\n", MODULE, **found)[1]["GLIBC_TUNABLES"] == (
        found["GLIBC_TUNABLES"]
    )


@pytest.mark.parametrize("command", [["-c", f"import room; {PROBE}"], ["room/probe.py"]])
def test_who_only_imports_the_package_is_left_alone(room: Path, command: list[str]) -> None:
    _, found = probe(room, "compute: {threads: 1, portable: true}\n", command, **OUTSIDE)
    assert {**found, **OUTSIDE} == found and "MKL_CBWR" not in found


@pytest.mark.parametrize("params", ["compute: [1\n", "", "other: 1\n"])
def test_a_params_file_that_says_nothing_is_left_to_the_stage(room: Path, params: str) -> None:
    assert "MKL_CBWR" not in probe(room, params, MODULE)[1]


def test_portable_asks_for_one_thread_float32_and_a_cpu() -> None:
    preset = parse_yaml((ROOT / "presets/portable.yaml").read_text())
    assert Compute(**preset["compute"], seed=0).portable
    for change in ({"threads": 2}, {"dtype": "bfloat16"}, {"device": "auto"}):
        with pytest.raises(ValidationError, match="portable needs dtype float32, device cpu and threads 1"):
            Compute(**{**preset["compute"], "seed": 0, **change})


def test_no_section_of_the_preset_computes_in_another_dtype() -> None:
    """A `dtype` of params.yaml that the preset forgets would be bfloat16 there; a stored base may be."""
    params = parse_yaml((ROOT / "params.yaml").read_text())
    preset = parse_yaml((ROOT / "presets/portable.yaml").read_text())

    def types(tree: dict, place: str = "") -> dict[str, str]:
        found = {}
        for key, value in tree.items():
            if isinstance(value, dict):
                found |= types(value, f"{place}{key}.")
            elif key == "dtype":
                found[f"{place}{key}"] = value
        return found

    assert {key for key, value in {**types(params), **types(preset)}.items() if value != "float32"} == {
        "base.decoder.dtype"
    }


ROOTS = """
import numpy as np, torch
from ajuste.core import arithmetic
x = torch.rand(4096, generator=torch.Generator().manual_seed(0)) + 1e-3
want = {dtype: np.sqrt(x.to(dtype).numpy()) for dtype in (torch.float32, torch.float64)}
wrong = sum(int((x.to(dtype).sqrt().numpy() != want[dtype]).sum()) for dtype in want)
arithmetic.exact_roots()
arithmetic.exact_roots()
for dtype, root in want.items():
    y = x.to(dtype)
    assert (y.sqrt().numpy() == root).all() and (torch.sqrt(y, out=torch.empty(0, dtype=dtype)).numpy() == root).all()
    assert (y.clone().sqrt_().numpy() == root).all()
    assert (y.view(64, 64).t().sqrt().numpy() == root.reshape(64, 64).T).all()
assert torch.tensor(4).sqrt() == 2.0 and torch.tensor([4.0]).bfloat16().sqrt().dtype == torch.bfloat16
z = torch.tensor([4.0, 9.0], requires_grad=True)
z.sqrt().sum().backward()
assert torch.allclose(z.grad, torch.tensor([1 / 4, 1 / 6]))
p = torch.nn.Parameter(x.clone())
p.grad = x.clone()
torch.optim.AdamW([p], lr=0.1, weight_decay=0.0, foreach=False).step()
print(wrong)
"""


def test_square_roots_are_correctly_rounded() -> None:
    done = subprocess.run([sys.executable, "-c", ROOTS], env=process(PYTHONPATH=str(ROOT)), capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0 and "Overriding" not in done.stderr, done.stderr
    assert int(done.stdout) > 0, "MKL's own roots are correct here: then nothing has to be replaced"


def test_tiny_stages_give_the_recorded_bytes(tmp_path: Path) -> None:
    """On this processor, whatever it is; and what a person set outside changes nothing."""
    done = subprocess.run([sys.executable, "-m", "tests.made.portable", str(tmp_path)], cwd=ROOT,
                          env=process(PYTHONPATH=str(ROOT), **OUTSIDE), capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.strip().splitlines()[-1]) == recorded()["functions"]


@pytest.mark.slow
def test_the_tiny_run_gives_the_recorded_bytes(tmp_path: Path) -> None:
    from tests.made.portable import outs

    assert outs(tmp_path / "project") == recorded()["stages"]
