"""What people put around any model: adapters, offloading, quantisation, recorded graphs, the stock Trainer."""

import warnings

import accelerate
import pytest
import torch
from datasets import Dataset
from families import BY_NAME, DETERMINISTIC, EVERY
from packaging.version import Version
from test_library_conventions import AUTO, build, inputs, run
from transformers import AutoTokenizer, Trainer, TrainingArguments

import hsvae_hf
from hsvae_hf.statistics import corpus_statistics

offloads = pytest.mark.skipif(
    Version(accelerate.__version__) < Version("1.15"), reason="accelerate refuses to keep a whole model on disk"
)
KINDS = ["hsvae", "hsvae-bert", "hsvae-vector"]  # a GRU, a transformer, a frozen transformer whose vector is decoded


@pytest.fixture(params=KINDS)
def family(request):
    return BY_NAME[request.param]


def adapt(model, *targets, **options):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=list(targets), r=2, **options)
    return peft.get_peft_model(model, config).train()


def step(model, batch):
    """One step of learning of what learns; the gradients of the adapters' last factors, which begin at zero."""
    run(model, batch)[0].backward()
    return {name: value.grad for name, value in model.named_parameters() if "lora_B" in name or "embedding_A" in name}


@pytest.mark.parametrize(
    ("name", "options", "adapted"),
    [("hsvae-bert", {"freeze_text_encoder": True}, {"query"}), ("hsvae", {}, {"lm_head", "embed_tokens"})],
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_adapters_learn_in_a_frozen_text_encoder_and_in_the_vocabulary(name, options, adapted):
    model = build(BY_NAME[name], "pretraining", **options)
    gradients = step(adapt(model, *adapted), inputs(BY_NAME[name]))
    assert {name.split(".")[-4 if "lora_B" in name else -3] for name in gradients} == adapted
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())


def test_adapters_of_classifiers_learn_and_are_saved_loaded_and_merged(family, tmp_path):
    peft = pytest.importorskip("peft")
    targets = ["gate", "slab"] if family.gru else ["query", "value"]
    model, batch = build(family, "classification"), inputs(family)
    assert not any(value.requires_grad for value in model.model.parameters())
    adapted = adapt(model, *targets, task_type=peft.TaskType.SEQ_CLS)
    assert model.model.training  # what is frozen without adapters is in evaluation mode
    model, optimizer = adapted, torch.optim.SGD([value for value in adapted.parameters() if value.requires_grad], 0.5)
    before = run(model.eval(), batch).logits
    for _ in range(2):
        gradients = step(model.train(), batch | {"labels": torch.tensor([0, 1, 2, 0])})
        assert all(gradient.abs().sum() > 0 for gradient in gradients.values())
        optimizer.step()
    after = run(model.eval(), batch).logits
    assert not torch.allclose(before, after)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(build(family, "classification"), str(tmp_path)).eval()
    assert torch.equal(run(loaded, batch).logits, after)
    torch.testing.assert_close(run(model.merge_and_unload(), batch).logits, after, atol=1e-6, rtol=1e-5)


@offloads
@pytest.mark.parametrize("kind", AUTO)
@pytest.mark.parametrize("name", [family.name for family in EVERY])
def test_offloaded_weights_give_the_same(name, kind, tmp_path):
    family, batch = BY_NAME[name], inputs(BY_NAME[name])
    model = build(family, kind)
    model.save_pretrained(tmp_path / "saved")
    limits = {"device_map": "auto", "max_memory": {"cpu": 2000}, "offload_folder": str(tmp_path / "off")}
    loaded = AUTO[kind].from_pretrained(tmp_path / "saved", **limits).eval()
    pseudo = getattr(loaded.base_model.latent_head, "pseudo_inputs", None)
    if kind == "pretraining" and pseudo is not None and pseudo.is_meta:  # read outside `forward`
        with pytest.raises(ValueError, match="`device_map` must keep the latent head in memory"):
            run(loaded, batch)
        return
    torch.testing.assert_close(run(loaded, batch)[0], run(model, batch)[0])
    if kind == "pretraining" and not family.words:
        latents = torch.ones(2, family.config().latent_size)
        assert torch.equal(loaded.decode_vectors(latents), model.decode_vectors(latents))
    if kind == "pretraining" and name not in DETERMINISTIC and "text-encoder" not in name and "sparsemax" not in name:
        assert len(loaded.sample_prior(2)) == 2


@pytest.mark.parametrize("kind", AUTO)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_models_give_nearly_the_same(family, kind):
    model, batch = build(family, kind), inputs(family)
    small = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear, torch.nn.GRU}, dtype=torch.qint8)
    torch.testing.assert_close(run(small, batch)[0], run(model, batch)[0], atol=0.1, rtol=0.05)


class First(torch.nn.Module):
    """The first output of a model, whose arguments are tensors."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *tensors):
        names = ["vectors"] if len(tensors) == 1 else ["input_ids", "attention_mask"]
        return self.model(**dict(zip(names, tensors, strict=True)))[0]


def other_batch(family):
    if family.given:
        return (torch.linspace(-2, 1, 15).view(3, 5),)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 1], [0, 0, 0, 0, 0, 9, 1], [0, 0, 7, 7, 7, 7, 1]])
    return ids, (ids != 0).long()


def exported(model, batch):
    sizes = [torch.export.Dim("batch", min=1, max=64), torch.export.Dim("length", min=1, max=100)]
    shapes = tuple(dict(enumerate(sizes[: len(batch)])) for _ in batch)
    return torch.export.export(model, batch, dynamic_shapes=(shapes,)).module()


@pytest.mark.parametrize("kind", ["model", "classification"])
@pytest.mark.parametrize("name", [family.name for family in EVERY])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_recorded_models_take_other_batches(name, kind):
    batch, other = tuple(inputs(BY_NAME[name]).values()), other_batch(BY_NAME[name])
    model = First(build(BY_NAME[name], kind))
    to_export = kind == "classification" and name in (*KINDS, "sdlgm", "vsc-given")
    for record in (torch.jit.trace, exported) if to_export else (torch.jit.trace,):
        torch.testing.assert_close(record(model, batch)(*other), model(*other), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["hsvae", pytest.param("hsvae-bert", marks=pytest.mark.slow)])
def test_compiled_models_train(name):
    family = BY_NAME[name]
    model, batch = build(family, "pretraining"), inputs(family)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(run(compiled, batch).loss, run(model, batch).loss)
    run(compiled.train(), batch).loss.backward()


@pytest.mark.parametrize("options", [{"gradient_checkpointing": True}, {"bf16": True}, {}], ids=str)
def test_the_stock_trainer_trains_a_half_precision_checkpoint(options, tmp_path):
    family = BY_NAME["hsvae-bert"]
    build(family, "classification", freeze_encoder=False).half().save_pretrained(tmp_path / "saved")
    model = AUTO["classification"].from_pretrained(tmp_path / "saved", dtype="auto" if not options else torch.float32)
    if not options:
        model.model.requires_grad_(False)
    before = {name: value.clone() for name, value in model.named_parameters()}
    rows = Dataset.from_list([{"input_ids": [5, 6, 7 + index, 1], "label": index % 3} for index in range(8)])
    settings = {"report_to": "none", "max_steps": 2, "learning_rate": 1e-5, "use_cpu": True, "save_strategy": "no"}
    arguments = TrainingArguments(str(tmp_path / "run"), disable_tqdm=True, **settings, **options)
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    for name, value in model.classifier.named_parameters():
        assert value.dtype == torch.float32
        assert not torch.equal(value, before[f"classifier.{name}"]), name  # steps of 1e-5 that fp16 would round away


def test_weights_that_would_learn_in_fp16_are_warned_of(tmp_path):
    family = BY_NAME["hsvae"]
    build(family, "pretraining").half().save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"load the model with `dtype=torch.float32`"):
        AUTO["pretraining"].from_pretrained(tmp_path).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AUTO["pretraining"].from_pretrained(tmp_path).eval()
        AUTO["pretraining"].from_pretrained(tmp_path, dtype=torch.float32).train()
        AUTO["classification"].from_pretrained(tmp_path).train()  # what learns is in fp32


@offloads
def test_the_package_reads_models_that_return_tuples_or_are_offloaded(saved_model, tmp_path):
    sentences = ["the cat sees a dog", "one and two"]
    tokenizer = AutoTokenizer.from_pretrained(saved_model)
    limits = {"device_map": "auto", "max_memory": {"cpu": 2000}, "offload_folder": str(tmp_path / "off")}
    codes, reports = [], []
    for options in ({}, {"return_dict": False}, limits):
        model = AUTO["pretraining"].from_pretrained(saved_model, **options).eval()
        codes.append(hsvae_hf.encode(model, tokenizer, sentences))
        torch.manual_seed(0)
        rows = tokenizer(sentences, padding=True, return_tensors="pt")
        reports.append(corpus_statistics(model, [dict(rows)]))
    assert codes[0].nnz == codes[1].nnz == codes[2].nnz > 0
    for found, report in zip(codes[1:], reports[1:], strict=True):
        assert abs(found - codes[0]).max() < 1e-6
        assert report["reconstruction_loss"] == pytest.approx(reports[0]["reconstruction_loss"])
