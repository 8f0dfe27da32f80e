"""One expert's bytes, on disk, in host memory and on a device, and the copies between.

Knows records, buffers, files and streams; knows nothing of which expert is resident, or why. Read
`record.py` first, then `mover.py`, whose implementations are `cpu.py` and `gpu.py`.
"""
