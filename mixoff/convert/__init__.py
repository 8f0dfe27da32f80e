"""From a Mixtral in any form to a mixoff checkpoint. Knows both forms.

`mixoff.convert.matrices` has a source's matrices, `mixoff.convert.output_files` the files that they
go into, `mixoff.convert.partial_folder` where those lie until all are whole, and
`mixoff.convert.conversion` does one after the other.
"""

from mixoff.convert.conversion import Conversion
from mixoff.convert.inflate import inflate_checkpoint
from mixoff.convert.quantize import quantize_checkpoint, source_files

__all__ = ["Conversion", "inflate_checkpoint", "quantize_checkpoint", "source_files"]
