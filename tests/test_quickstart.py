"""The first command of the README, with a few sentences."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "scripts/quickstart.py"


def test_quickstart_trains_and_shows_codes_and_a_reconstruction(tmp_path):
    options = ["--output_dir", tmp_path / "run", "--max_train_samples", "200", "--max_steps", "3"]
    done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "dimensions active; strongest" in done.stdout
    assert 'Reconstruction of "Set the title of the figure."' in done.stdout
    assert {"config.json", "model.safetensors", "gates.png"} <= {path.name for path in (tmp_path / "run").iterdir()}
