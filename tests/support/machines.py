"""Machines that plans and recommendations are tested for."""

from dataclasses import replace

from mixoff.planning import Hardware

GIB = 1 << 30
# The free tier of Colab: a T4, 12.7 GiB of memory, 2 cores.
T4 = Hardware(
    gpu="Tesla T4",
    gpu_nbytes=15 * GIB,
    free_gpu_nbytes=int(14.7 * GIB),
    host_nbytes=int(12.7 * GIB),
    free_host_nbytes=11 * GIB,
    free_disk_nbytes=70 * GIB,
    cores=2,
)
NO_GPU = replace(T4, gpu=None, gpu_nbytes=0, free_gpu_nbytes=0)
