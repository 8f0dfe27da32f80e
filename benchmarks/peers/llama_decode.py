"""llama.cpp as a worker, through llama-cpp-python's low-level calls."""

import ctypes
from typing import Any

import llama_cpp
import numpy as np
from worker import decode

BATCH = 512
MODES = {"memory": llama_cpp.LLAMA_LOAD_MODE_NONE, "mapped": llama_cpp.LLAMA_LOAD_MODE_MMAP}


@llama_cpp.llama_log_callback
def quiet(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """Drop llama.cpp's log messages."""


class LlamaSession:
    """A model and its KV cache."""

    def __init__(self, settings: dict[str, Any]) -> None:
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.load_mode = MODES[settings["how"]]
        options.use_extra_bufts = settings["repack"]
        options.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(settings["path"].encode(), options)
        if not self.model:
            raise SystemExit(f"{settings['path']}: llama.cpp can't load it")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = 2 * BATCH, BATCH, BATCH
        parameters.n_threads = parameters.n_threads_batch = settings["threads"]
        parameters.n_seq_max = 1
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.size = llama_cpp.llama_vocab_n_tokens(vocab)

    def read(self, ids: list[int]) -> int:
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        batch = llama_cpp.llama_batch_get_one(tokens, len(ids))
        if code := llama_cpp.llama_decode(self.context, batch):
            raise SystemExit(f"llama_decode: {code}")
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return int(np.ctypeslib.as_array(logits, (self.size,)).argmax())

    def reset(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def facts(self) -> dict[str, Any]:
        return {}


if __name__ == "__main__":
    decode(LlamaSession)
