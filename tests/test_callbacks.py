"""The collapse monitor: it sees what there is, says so, and leaves training alone."""

import logging

import datasets
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hsvae_hf.callbacks import CollapseMonitor, held_out_batches
from hsvae_hf.statistics import corpus_statistics


@pytest.fixture
def warnings(caplog):
    with caplog.at_level(logging.WARNING, logger="hsvae_hf.callbacks"):
        yield caplog


def test_it_logs_the_latent_and_changes_nothing(make_trainer, tmp_path):
    plain = make_trainer("plain", num_train_epochs=3, save_strategy="no")
    plain.train()
    watched = make_trainer("watched", num_train_epochs=3, save_strategy="no", report_to="tensorboard")
    monitor = CollapseMonitor(watched)
    watched.add_callback(monitor)
    watched.train()
    for name in ("loss", "eval_loss"):
        assert [row[name] for row in plain.state.log_history if name in row] == [
            row[name] for row in watched.state.log_history if name in row
        ]
    looks = [row for row in watched.state.log_history if "eval_active_dims" in row]
    assert [row["step"] for row in looks] == [3, 6, 9]
    assert looks[-1]["eval_mutual_information"] == monitor.statistics["mutual_information"]
    assert monitor.statistics["rows"] == 6
    torch.manual_seed(0)
    again = corpus_statistics(watched.model.eval(), held_out_batches(watched, 1000))
    for name in ("active_dims", "active_units", "dead_dims", "always_on_dims"):
        assert again[name] == monitor.statistics[name]
    events = EventAccumulator(str(next(tmp_path.glob("**/events*")).parent))
    events.Reload()
    assert "eval/mutual_information" in events.Tags()["scalars"]
    assert "eval/kl_per_dimension" in events.Tags()["histograms"]


def test_a_collapsed_latent_is_named(make_trainer, warnings):
    trainer = make_trainer(max_steps=1, eval_strategy="steps", eval_steps=1, save_strategy="no")
    for parameter in trainer.model.model.latent_head.parameters():
        torch.nn.init.zeros_(parameter)
    trainer.add_callback(CollapseMonitor(trainer))
    trainer.evaluate()
    assert "step 0: The code ignores the sentence (posterior collapse)" in warnings.text


def test_codes_are_counted_as_those_of_the_finished_model(make_trainer, small_config, warnings):
    small_config.update({"target_active_dims": 2.0, "gamma_kl_weight": 0.1, "active_threshold": 0.01})
    trainer = make_trainer()
    monitor = CollapseMonitor(trainer)
    trainer.add_callback(monitor)
    trainer.evaluate()
    assert monitor.statistics["active_dims"] == pytest.approx(2.0, abs=0.2)
    assert trainer.model.config.active_threshold == 0.01
    assert "Codes are empty" not in warnings.text


def test_held_out_rows_are_those_asked_for_and_no_single_class_of_sorted_ones(make_trainer):
    trainer = make_trainer(per_device_eval_batch_size=2)
    trainer.eval_dataset = datasets.Dataset.from_dict({"input_ids": [[number, 1] for number in range(3, 12)]})
    for rows in (1, 3, 4, 1000):
        first = torch.cat([batch["input_ids"][:, 0] for batch in held_out_batches(trainer, rows)]).tolist()
        assert len(set(first)) == len(first) == min(rows, 9)
        assert rows != 4 or sorted(first) != [3, 4, 5, 6]


def test_advice_is_given_once_and_again_at_the_end(make_trainer, warnings, monkeypatch):
    numbers = iter(range(100))
    monkeypatch.setattr("hsvae_hf.callbacks.advice", lambda *_: f"{next(numbers)} of 6 dimensions are never on.")
    trainer = make_trainer(num_train_epochs=4, save_strategy="no")
    trainer.add_callback(CollapseMonitor(trainer))
    trainer.train()
    trainer.evaluate()
    assert warnings.messages == ["step 3: 0 of 6 dimensions are never on.", "step 12: 3 of 6 dimensions are never on."]
