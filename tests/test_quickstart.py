"""The first command of the README, with a few sentences."""

from vector_models import script


def test_quickstart_trains_and_shows_codes_and_a_reconstruction(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hsvae_hf.docstrings.SENTENCES_PER_PACKAGE", 40)  # parsing files is what takes the time
    script("quickstart", "--output_dir", tmp_path / "run", "--max_train_samples", 200, "--max_steps", 3)
    printed = capsys.readouterr().out
    assert "dimensions active; strongest" in printed
    assert 'Reconstruction of "Set the title of the figure."' in printed
    assert {"config.json", "model.safetensors", "gates.png"} <= {path.name for path in (tmp_path / "run").iterdir()}
