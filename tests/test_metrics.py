"""The `evaluate` modules: they give what the accumulators of `hsvae_hf.sparsity_measures` give."""

import evaluate
import numpy as np
import pytest
from test_sparsity_measures import sparse_codes

from hsvae_hf.metrics import metric_path
from hsvae_hf.sparsity_measures import AverageHoyer, CodeStatistics

METRICS = {"active_dims": CodeStatistics, "average_hoyer": AverageHoyer}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """`evaluate.load` of a metric of this package, kept off the network."""
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    return lambda name, **kwargs: evaluate.load(metric_path(name), cache_dir=str(tmp_path), **kwargs)


@pytest.mark.parametrize("name", METRICS)
def test_metrics_give_what_the_accumulators_give_and_start_afresh(load, name, tmp_path):
    codes, accumulator, metric = sparse_codes(), METRICS[name](), load(name)
    accumulator.update(codes)
    expected = accumulator.compute()
    for _ in range(2):
        metric.add_batch(predictions=codes[:200])
        for row in codes[200:250]:
            metric.add(prediction=row)
        assert len(metric) == 250
        result = metric.compute(predictions=codes[250:])
        assert result == pytest.approx({field: expected[field] for field in result}, rel=1e-12)
        assert name in result
        assert len(metric) == 0
    assert not list(tmp_path.rglob("*.arrow"))


def test_metrics_take_options_and_combine(load):
    codes = [[0.0, 3.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]
    result = load("average_hoyer").compute(predictions=codes, normalize=False)
    assert result == {"average_hoyer": 0.5, "empty_rows": 0.0, "constant_dims": 0}
    both = evaluate.combine([load(name) for name in METRICS])
    codes = sparse_codes()
    both.add_batch(predictions=codes[:150])
    both.add_batch(predictions=codes[150:])
    result = both.compute()
    assert result["active_dims"] == pytest.approx((codes != 0).sum() / 300)
    assert result["average_hoyer"] == load("average_hoyer").compute(predictions=codes)["average_hoyer"]


def test_what_a_metric_cannot_do_is_refused(load):
    with pytest.raises(ValueError, match="`codes` must hold at least one row, got none"):
        load("active_dims").compute()
    with pytest.raises(ValueError, match="`num_process` must be 1, got 2"):
        load("active_dims", num_process=2, process_id=0, experiment_id="two")
    with pytest.raises(ValueError, match="`name` must be one of"):
        metric_path("hoyer")
    with pytest.raises(ValueError, match="`codes` must hold finite numbers"):
        load("average_hoyer").add_batch(predictions=np.array([[1.0, np.nan]]))
