"""An unquantized model's predictions of a text, computed one layer and one expert at a time.

A model of a single layer, transformers' own class, receives the weights of all layers one after the
other. In the place of its experts a module records their inputs and returns zeros; then each expert
is read once, computed for all windows, and freed. All but the loop over experts is transformers'.

Letters: N tokens, T tokens of a window, D hidden size, V vocabulary, k experts a token.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import MODEL_MAPPING, PreTrainedConfig

from mixoff.checkpoints.source_files import FolderFiles
from mixoff.checkpoints.unquantized import UnquantizedCheckpoint
from mixoff.errors import ConfigError
from mixoff.families.architecture import EMBEDDINGS, HEAD, LAST_NORM
from mixoff.measure.text_windows import Windows, text_windows
from mixoff.models.replace import expert_modules
from mixoff.models.transformers_seam import apply_gate
from mixoff.planning.free_memory import free_device_memory, headroom
from mixoff.units import format_nbytes


@dataclass(frozen=True)
class Reference:
    """An unquantized model's predictions of a text; logits are computed on demand.

    Parameters
    ----------
    original
        The model, whose weights are no longer in memory.
    windows
        The text.
    hidden_states
        The head's inputs [N, D], float32 on the CPU: 16 KiB a token for Mixtral-8x7B.
    head
        The head's weights [V, D], float32: 500 MiB for Mixtral-8x7B.
    """

    original: UnquantizedCheckpoint
    windows: Windows
    hidden_states: Tensor
    head: Tensor

    def logits(self, rows: slice) -> Tensor:
        """Return the float32 logits [rows, V] of the tokens that follow the given ones."""
        hidden_states = self.hidden_states[None, rows].to(self.head.device)
        return F.linear(hidden_states, self.head)[0]

    def to(self, device: str | torch.device) -> "Reference":
        """Return the same reference with its head on a device, where logits are then computed."""
        return replace(self, head=self.head.to(device))


def open_unquantized(original: str | Path | UnquantizedCheckpoint) -> UnquantizedCheckpoint:
    """Return an opened unquantized Mixtral, of a folder in Hugging Face's form.

    Raises
    ------
    CheckpointError
        If the folder has no unquantized Mixtral, or a damaged one.
    """
    return (
        original
        if isinstance(original, UnquantizedCheckpoint)
        else UnquantizedCheckpoint(FolderFiles(original))
    )


def compute_reference(
    original: str | Path | UnquantizedCheckpoint,
    tokenizer: Any,
    text: str,
    *,
    window: int | None = None,
    tokens: int | None = None,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> Reference:
    """Return an unquantized Mixtral's predictions of a text, computed in float32.

    The model need not fit in memory. `reference_nbytes` returns the memory that is needed, which is
    checked first: 2.9 GiB and 48 KiB a token for Mixtral-8x7B, 4.4 GiB for 32,768 tokens.

    Parameters
    ----------
    original
        A folder in Hugging Face's form, or the result of `open_unquantized`.
    window, tokens
        As `mixoff.measure.held_out_loss` takes them.
    device
        The device to compute on, which also holds all data of the computation.
    progress
        Whether to show a progress bar.

    Raises
    ------
    CheckpointError
        If the folder has no unquantized Mixtral, or a damaged one.
    ConfigError
        If the text has no token to predict, a window is longer than the model's positions, or
        there is too little memory for this many tokens.
    """
    original, device = open_unquantized(original), torch.device(device)
    config = original.architecture.transformers_config()
    positions = int(config.max_position_embeddings)
    windows = text_windows(tokenizer, text, positions, window=window, tokens=tokens)
    _refuse_too_much(original, windows, free_device_memory(device))
    with torch.inference_mode():
        hidden_states, head = _Stream(original, config, device).run(windows, progress=progress)
    return Reference(original, windows, hidden_states, head)


def reference_nbytes(original: UnquantizedCheckpoint, windows: Windows) -> int:
    """Return the bytes that `compute_reference` allocates at most.

    They are three rows of D for each token; embeddings, head, one expert as it is stored and in
    float32, a layer's attention, and a window's activations.
    """
    return _fixed_nbytes(original, windows.size) + windows.predicted * _nbytes_per_token(original)


def _nbytes_per_token(original: UnquantizedCheckpoint) -> int:
    """Return the bytes of a token: the residual stream, and the experts' inputs and outputs."""
    return 3 * 4 * original.architecture.hidden_size


def _fixed_nbytes(original: UnquantizedCheckpoint, size: int) -> int:
    architecture = original.architecture
    inner, hidden = architecture.intermediate_size, architecture.hidden_size
    vocab = dict(architecture.non_expert_shapes())[EMBEDDINGS][0]
    attention = sum(
        math.prod(shape)
        for name, shape in architecture.non_expert_shapes()
        if architecture.is_packed(name) and name.startswith(architecture.layer_prefix(0))
    )
    expert = 2 * 3 * inner * hidden  # as stored, gate and up joined, and in float32
    return 4 * (2 * vocab * hidden + expert + attention + size * (3 * inner + 4 * hidden))


def _refuse_too_much(original: UnquantizedCheckpoint, windows: Windows, free: int) -> None:
    needed, usable = reference_nbytes(original, windows), free - headroom(free)
    if needed <= usable:
        return
    fit = (usable - _fixed_nbytes(original, windows.size)) // _nbytes_per_token(original)
    remedy = f"give tokens={fit} or fewer" if fit > 0 else "not even one token fits"
    raise ConfigError(
        f"tokens={windows.predicted}: computing the unquantized {original.files.name} over them "
        f"takes {format_nbytes(needed)} of memory, and {format_nbytes(max(0, usable))} can be "
        f"used: {remedy}."
    )


@dataclass(frozen=True)
class _Call:
    """The inputs of a layer's experts for a window, and what they add to the residual stream."""

    hidden_states: Tensor  # [T, D]
    top_k_index: Tensor  # [T, k]
    top_k_weights: Tensor  # [T, k]
    out: Tensor  # [T, D]

    def chosen(self, expert: int) -> tuple[Tensor, Tensor]:
        """Return the positions in `top_k_index`, and the tokens, for which an expert was chosen.

        The order is that of transformers' loop over experts, so that sums are equal to the bit.
        """
        position, token = torch.where(self.top_k_index.T == expert)
        return position, token


class _CallRecorder(nn.Module):
    """A module in the place of the experts that records their calls and returns zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return zeros [T, D]."""
        out = torch.zeros_like(hidden_states)
        self.calls.append(_Call(hidden_states, top_k_index, top_k_weights, out))
        return out


class _Stream:
    """A model of one layer, which receives the weights of all layers one after the other."""

    def __init__(
        self, original: UnquantizedCheckpoint, config: PreTrainedConfig, device: torch.device
    ) -> None:
        self._original = original
        self._device = device
        self._layers = int(config.num_hidden_layers)
        config.num_hidden_layers = 1
        model_class: Any = MODEL_MAPPING[type(config)]
        with torch.device("meta"):  # allocates nothing: weights are assigned later
            self._model = model_class(config).train(False)
        (experts,) = expert_modules(self._model)
        self._apply_gate = apply_gate(self._model.get_submodule(experts))
        self._recorder = _CallRecorder()
        self._model.set_submodule(experts, self._recorder)
        self._norm, self._model.norm = self._model.norm, nn.Identity()
        self._model.rotary_emb = type(self._model.rotary_emb)(config).to(device)

    def run(self, windows: Windows, *, progress: bool) -> tuple[Tensor, Tensor]:
        """Return the head's inputs [N, D], and the head [V, D]."""
        head_name = EMBEDDINGS if self._original.config.get("tie_word_embeddings") else HEAD
        self._fetch(self._original.files_of({EMBEDDINGS, LAST_NORM, head_name}))
        head = self._original.tensor(head_name)
        self._norm.load_state_dict({"weight": self._tensor(LAST_NORM)}, assign=True)
        states = self._embedded(windows)
        nbytes = format_nbytes(reference_nbytes(self._original, windows))
        about = f"unquantized model, {windows.predicted} tokens, {nbytes}"
        layers = tqdm(range(self._layers), about, unit="layer", disable=not progress)
        for layer in layers:
            self._fetch(self._original.files_of_layer(layer))
            self._load(layer)
            for number, hidden_states in enumerate(states):
                states[number] = self._model(
                    inputs_embeds=hidden_states[None], use_cache=False
                ).last_hidden_state[0]
            self._add_experts(layer, states)
            self._model.layers.to("meta")  # frees the layer's weights before the next are read
            self._release_after(layer)
        normed = [self._norm(hidden_states).cpu() for hidden_states in _drained(states)]
        return torch.cat(normed), head.float()

    def _embedded(self, windows: Windows) -> list[Tensor]:
        embeddings = self._original.tensor(EMBEDDINGS)  # [V, D]
        return [
            F.embedding(read, embeddings).to(self._device, torch.float32) for read, _ in windows
        ]

    def _load(self, layer: int) -> None:
        prefix = self._original.architecture.layer_prefix(layer)
        names = [name for name, _ in self._original.architecture.non_expert_shapes()]
        weights = {
            name.removeprefix(prefix): self._tensor(name)
            for name in names
            if name.startswith(prefix)
        }
        self._model.layers[0].load_state_dict(weights, assign=True)

    def _add_experts(self, layer: int, states: list[Tensor]) -> None:
        """Add the outputs of a layer's experts, in the order of transformers' ``eager`` experts."""
        calls = self._recorder.calls
        for expert in range(self._original.architecture.num_experts):
            chosen = [call.chosen(expert) for call in calls]
            if any(len(token) for _, token in chosen):
                self._apply(layer, expert, zip(calls, chosen, strict=True))
        for hidden_states, call in zip(states, calls, strict=True):
            hidden_states += call.out
        calls.clear()

    def _apply(
        self, layer: int, expert: int, work: Iterable[tuple[_Call, tuple[Tensor, Tensor]]]
    ) -> None:
        gate_up, down = (
            stored.to(self._device, torch.float32)
            for _, stored in self._original.expert(layer, expert)
        )
        for call, (position, token) in work:
            hidden = self._apply_gate(F.linear(call.hidden_states[token], gate_up))
            expert_out = F.linear(hidden, down) * call.top_k_weights[token, position, None]
            call.out.index_add_(0, token, expert_out)

    def _tensor(self, name: str) -> Tensor:
        return self._original.tensor(name).to(self._device, torch.float32)

    def _fetch(self, files: Iterable[str]) -> None:
        for name in sorted(files):
            self._original.files.fetch(name)

    def _release_after(self, layer: int) -> None:
        """Release a layer's files that no later layer needs."""
        later = (self._original.files_of_layer(after) for after in range(layer + 1, self._layers))
        for name in sorted(self._original.files_of_layer(layer).difference(*later)):
            self._original.files.release(name)


def _drained(tensors: list[Tensor]) -> Iterator[Tensor]:
    """Yield a list's tensors in order, and remove each, so that it is freed after use."""
    tensors.reverse()  # `pop` removes at the end in constant time
    while tensors:
        yield tensors.pop()
