"""From an unquantized or a quantized model to a mixoff checkpoint. Knows both forms.

`conversion.py` has the order of steps: read it first. `matrices.py` has a source's matrices,
`output_files.py` the files that they are written to, and `partial_folder.py` the folder in which
those lie until all are whole.
"""

from mixoff.convert.conversion import Conversion
from mixoff.convert.inflate import inflate_checkpoint
from mixoff.convert.quantize import quantize_checkpoint, source_files

__all__ = ["Conversion", "inflate_checkpoint", "quantize_checkpoint", "source_files"]
