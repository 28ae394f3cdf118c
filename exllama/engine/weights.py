"""Where the modules of a model being loaded get their tensors: a checkpoint, checked against what they expect."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch

from exllama import formats
from exllama.errors import FormatError
from exllama.loader.checkpoint import Checkpoint
from exllama.loader.progress import Progress
from exllama.ops import Weight

# Left by old exporters, or read together with the tensor that they belong to.
_COMPANIONS = (".rotary_emb.inv_freq", ".weight_scale_inv", ".weight_scale", ".input_scale")
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_MATRIX = ".weight"
_COMPARED_BYTES = 1 << 20  # at a time


def has_own_head(checkpoint: Checkpoint) -> bool:
    """Whether the file has an output head that differs from its embedding, whatever its configuration says of tying.

    Fine-tuned models exist whose head was trained apart while the configuration still calls it tied. Compares raw rows,
    and stops at the first difference.
    """
    if formats.find_composite(checkpoint.tensors, _HEAD.removesuffix(_MATRIX)) is not None:
        return True
    head, embedding = checkpoint.tensors.get(_HEAD), checkpoint.tensors.get(_EMBEDDING)
    if head is None or embedding is None:
        return False
    if (head.shape, head.type) != (embedding.shape, embedding.type) or len(head.shape) != 2:
        return True
    step = max(1, _COMPARED_BYTES * head.shape[0] // max(head.nbytes, 1))
    for begin in range(0, head.shape[0], step):
        end = min(begin + step, head.shape[0])
        if not np.array_equal(head.read_rows(begin, end), embedding.read_rows(begin, end)):
            return True
    return False


class CheckpointWeights:
    """The TensorSource of layers/module.py over an open checkpoint. Streams: one tensor at a time, nothing twice."""

    def __init__(
        self, checkpoint: Checkpoint, device: str, expand: Literal["float32"] | None, progress: Progress | None
    ) -> None:
        self._checkpoint, self._device, self._expand, self._progress = checkpoint, device, expand, progress
        self._done = self._total = 0

    def expect(self, names: Iterable[str]) -> None:
        """Compares the names that the modules will ask for with those that the file has, before anything is read.

        Raises FormatError when one is missing, or when the layers of the file hold more than the modules would use:
        the file is then another model than its configuration says.
        """
        tensors = self._checkpoint.tensors
        wanted = [stored for name in names for stored in self._stored_names(name)]
        for name in wanted:
            if name not in tensors:
                raise FormatError(self._checkpoint.path, name, "no such tensor", "one, as the configuration describes")
        unused = {name for name in tensors if name.startswith(("model.", "lm_head."))} - set(wanted)
        for name in sorted(unused):
            if name != _HEAD and not name.endswith(_COMPANIONS):  # a tied head may be there twice, see has_own_head
                hint = "The file holds another model than its configuration describes"
                raise FormatError(self._checkpoint.path, name, "a tensor", "none of that name", hint)
        self._total = sum(tensors[name].nbytes for name in wanted)

    def weight(self, key: str, shape: tuple[int, int]) -> Weight:
        """See TensorSource."""
        weight = formats.load_weight(self._checkpoint, key, shape, self._device, self._expand)
        self._advance(formats.stored_names(self._checkpoint.tensors, key))
        return weight

    def vector(self, name: str, size: int) -> torch.Tensor:
        """See TensorSource."""
        vector = formats.load_vector(self._checkpoint, name, size)
        self._advance([name])
        return vector

    def _stored_names(self, name: str) -> list[str]:
        """The tensors of the file that a module's tensor is read from."""
        if not name.endswith(_MATRIX):
            return [name]
        return formats.stored_names(self._checkpoint.tensors, name.removesuffix(_MATRIX))

    def _advance(self, names: Iterable[str]) -> None:
        self._done += sum(self._checkpoint.tensors[name].nbytes for name in names)
        if self._progress:
            self._progress("load", self._done, self._total)
