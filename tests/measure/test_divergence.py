"""The divergence of two models is that of their logits, and grows with fewer bits."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, MixtralForCausalLM, PreTrainedModel

from mixoff import ConfigError, Scheme, build_model, quantize_checkpoint
from mixoff.measure import Divergence, Reference, compute_reference, held_out_loss, kl_divergence
from mixoff.quantization import HQQ
from support.tiers import tiered
from support.tiny import EXACT, bytes_as_ids

DATA = Path(__file__).resolve().parents[2] / "data"
TEXT = "Each token's two distributions are compared, whatever the text goes on with. " * 4


@pytest.fixture(scope="module")
def reference(tiny_mixtral: Callable[..., Path]) -> Reference:
    return compute_reference(tiny_mixtral(), bytes_as_ids, TEXT)


@pytest.fixture(scope="module")
def model(quantized: Callable[..., Path]) -> PreTrainedModel:
    return build_model(quantized())[0]


@pytest.fixture(scope="module")
def divergence(model: PreTrainedModel, reference: Reference) -> Divergence:
    return kl_divergence(model, reference)


@pytest.fixture(scope="module")
def both_log_probs(
    tiny_mixtral: Callable[..., Path], model: PreTrainedModel, reference: Reference
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of transformers' unquantized model and of the quantized one, in memory."""
    whole = MixtralForCausalLM.from_pretrained(tiny_mixtral())
    with torch.no_grad():
        both = [
            torch.cat([each(input_ids=read[None]).logits[0] for read, _ in reference.windows])
            for each in (whole, model)
        ]
    log_p, log_q = (logits.double().log_softmax(-1) for logits in both)
    return log_p, log_q


def test_the_divergence_is_that_of_two_models_in_memory(
    divergence: Divergence, both_log_probs: tuple[Tensor, Tensor]
) -> None:
    log_p, log_q = both_log_probs
    each = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    expected = (each.mean(), each.std() / len(each) ** 0.5, each.median(), each.quantile(0.99))
    measured = (
        divergence.mean,
        divergence.standard_error,
        divergence.median,
        divergence.percentile_99,
    )
    assert measured == pytest.approx([float(value) for value in expected], rel=1e-3)
    assert divergence.mean > 0.001


def test_the_divergence_is_no_symmetric_one(
    divergence: Divergence, both_log_probs: tuple[Tensor, Tensor]
) -> None:
    log_p, log_q = both_log_probs
    reverse = F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
    assert divergence.mean != pytest.approx(float(reverse), rel=1e-3)


def test_the_agreement_is_that_of_two_models_in_memory(
    divergence: Divergence, both_log_probs: tuple[Tensor, Tensor]
) -> None:
    same = both_log_probs[0].argmax(-1) == both_log_probs[1].argmax(-1)
    assert divergence.top1_agreement == pytest.approx(float(same.double().mean()), abs=1e-12)
    assert 0 < divergence.top1_agreement < 1


def test_both_losses_are_those_of_the_models(
    divergence: Divergence, model: PreTrainedModel, tiny_mixtral: Callable[..., Path]
) -> None:
    whole = MixtralForCausalLM.from_pretrained(tiny_mixtral())
    for loss, measured in ((divergence.quantized, model), (divergence.unquantized, whole)):
        expected = held_out_loss(measured, bytes_as_ids, TEXT)
        assert loss.tokens == expected.tokens
        assert loss.loss == pytest.approx(expected.loss, rel=1e-5)


def test_the_error_of_the_rise_is_that_of_paired_losses(
    divergence: Divergence, both_log_probs: tuple[Tensor, Tensor], reference: Reference
) -> None:
    following = reference.windows.ids[1:, None]
    before, after = (-x.gather(-1, following)[:, 0] for x in both_log_probs)
    assert divergence.rise == pytest.approx(float((after - before).mean()), rel=1e-3)
    error = float((after - before).std()) / len(before) ** 0.5
    assert divergence.rise_standard_error == pytest.approx(error, rel=1e-3)


def test_a_model_that_was_stored_as_it_is_does_not_diverge(
    quantized: Callable[..., Path], reference: Reference
) -> None:
    divergence = kl_divergence(build_model(quantized(EXACT))[0], reference)
    assert abs(divergence.mean) < 1e-9
    assert divergence.top1_agreement == 1


def test_a_single_tokens_mean_has_no_known_error(
    model: PreTrainedModel, tiny_mixtral: Callable[..., Path]
) -> None:
    single = compute_reference(tiny_mixtral(), bytes_as_ids, TEXT, tokens=1)
    assert str(kl_divergence(model, single).standard_error) == "nan"


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({"experts": 4}, "num_local_experts is 4 there and 8 here"),
        ({"vocab_size": 300}, "vocab_size is 300 there and 256 here"),
        ({"head_dim": 32}, "head_dim is 32 there and 16 here"),
        ({"top_k": 3}, "num_experts_per_tok is 3 there and 2 here"),
    ],
)
def test_a_model_of_other_sizes_is_refused(
    settings: dict[str, int],
    sizes: str,
    tiny_mixtral: Callable[..., Path],
    model: PreTrainedModel,
) -> None:
    different = compute_reference(tiny_mixtral(**settings), bytes_as_ids, TEXT, tokens=2)
    with pytest.raises(ConfigError) as refused:
        kl_divergence(model, different)
    assert sizes in str(refused.value)
    assert str(tiny_mixtral(**settings)) in str(refused.value)


def test_the_heads_device_changes_nothing(
    model: PreTrainedModel, reference: Reference, divergence: Divergence
) -> None:
    assert kl_divergence(model, reference.to("cpu")) == divergence
    changed = replace(reference, head=reference.head + 0.1 * reference.head.abs())
    assert kl_divergence(model, changed) != divergence


ALL_BITS, EXTREMES = ((8, 4, 3, 2), 2048), ((8, 2), 1024)  # bits of experts, tokens


@pytest.fixture(
    scope="module", params=tiered([ALL_BITS, EXTREMES], [EXTREMES]), ids=["all-bits", "extremes"]
)
def by_bits(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Divergence]:
    """The divergences of the demo model with its experts in some bits, from its original."""
    all_bits, tokens = request.param
    original = DATA / "demo-mixtral-float16"
    tokenizer = AutoTokenizer.from_pretrained(original)
    text = (DATA / "heldout.txt").read_text(encoding="utf-8")
    reference = compute_reference(original, tokenizer, text, tokens=tokens)
    divergences = {}
    for bits in all_bits:
        target = tmp_path_factory.mktemp("bits") / "model"
        scheme = Scheme(attention=HQQ(8, 64), experts=HQQ(bits, 64))
        quantize_checkpoint(original, target, scheme, progress=False)
        divergences[bits] = kl_divergence(build_model(target)[0], reference)
    return divergences


def test_the_demo_models_divergence_rises_and_its_agreement_falls_with_fewer_bits(
    by_bits: dict[int, Divergence],
) -> None:
    means = [divergence.mean for divergence in by_bits.values()]
    assert all(2 * fewer < more for fewer, more in pairwise(means))
    agreements = [divergence.top1_agreement for divergence in by_bits.values()]
    assert agreements == sorted(agreements, reverse=True)


def test_the_demo_models_loss_rises_with_fewer_bits_but_for_noise(
    by_bits: dict[int, Divergence],
) -> None:
    for more_bits, fewer_bits in pairwise(by_bits.values()):
        noise = math.hypot(more_bits.rise_standard_error, fewer_bits.rise_standard_error)
        assert fewer_bits.rise > more_bits.rise - 2 * noise
    assert by_bits[2].rise > 3 * by_bits[2].rise_standard_error
