"""A conversion from its source to the folder that it makes. Knows the order of steps.

Files are written one by one into a folder beside the target (`mixoff.convert.partial_folder`). When
all are written, every byte is read again, and only then the folder gets its name. If a conversion
is interrupted, the same conversion resumes with the files that are whole, and makes the same bytes.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from mixoff.checkpoints.folder import CheckpointFolder
from mixoff.checkpoints.mixoff_format import MixoffCheckpoint
from mixoff.checkpoints.quantization_config import (
    FORMAT_VERSION,
    quantization_settings,
    stored_dtype,
)
from mixoff.checkpoints.safetensors_read import read_shard
from mixoff.checkpoints.source_files import SourceFiles
from mixoff.convert.companions import SMALL_FILES, small_files
from mixoff.convert.matrices import Matrices, open_matrices
from mixoff.convert.output_files import Unit, units_of
from mixoff.convert.partial_folder import PartialFolder, named_errors, write_durably
from mixoff.errors import CheckpointError, ConfigError
from mixoff.quantization import Scheme
from mixoff.tiers.aligned import PAGE

RUNNING = 600 << 20  # bytes that Python and torch take by themselves
_STORED_COPIES, _WORK_NBYTES = 3, 8  # of a matrix as it is stored, and for each of its weights


class Conversion:
    """A conversion that was checked and measured, and can be run.

    Parameters
    ----------
    files
        The source.
    target, scheme
        As for `mixoff.quantize_checkpoint`.

    Raises
    ------
    CheckpointError
        If the source can't be converted.
    ConfigError
        If the target exists already, or the scheme doesn't suit the model's shapes.
    """

    def __init__(
        self, files: SourceFiles, target: str | Path, scheme: Scheme | None = None
    ) -> None:
        self.files = files
        self.target = Path(target)
        self._progress = _Progress()
        with named_errors(self.target):
            self._matrices: Matrices = open_matrices(files, scheme)
            self._units = units_of(self._matrices, self._progress)
            self._folder = PartialFolder(self.target, self._facts)
            self._refuse_existing()

    @property
    def scheme(self) -> Scheme:
        """How attention and experts will be stored."""
        return self._matrices.scheme

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the checkpoint, to the byte."""
        crcs = {unit.name: 0 for unit in self._units}
        small = small_files(self._matrices, self._units, crcs)
        return sum(unit.nbytes for unit in self._units) + sum(map(len, small.values()))

    @property
    def num_weights(self) -> int:
        """Weights of the model."""
        return sum(unit.num_weights for unit in self._units)

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return len(self._units) - 1

    @property
    def free_nbytes(self) -> int:
        """Bytes that are free on the target's disk.

        Raises
        ------
        CheckpointError
            If the system can't say.
        """
        try:
            parents = (parent for parent in self.target.absolute().parents if parent.exists())
            return shutil.disk_usage(next(parents)).free
        except OSError as error:
            raise CheckpointError(f"{self.target}: can't be written ({error.strerror}).") from error

    @property
    def memory_nbytes(self) -> int:
        """About how many bytes of memory it takes at most."""
        architecture = self._matrices.weights.architecture
        gate_up = 2 * architecture.intermediate_size * architecture.hidden_size  # weights
        records = max(t.nbytes // t.num_chunks for u in self._units for t in u.tensors.values())
        stored = stored_dtype(self._matrices.weights.config).itemsize
        return RUNNING + records + gate_up * (_STORED_COPIES * stored + _WORK_NBYTES)

    @property
    def done_layers(self) -> int:
        """Layers that an unfinished conversion to this target has finished."""
        done = self._done() if self._folder.model.is_dir() else {}
        return len([name for name in done if name != self._units[0].name])

    def run(self, *, progress: bool = True, restart: bool = False) -> Path:
        """Convert, and return the target; see `mixoff.quantize_checkpoint`."""
        with named_errors(self.target):
            return self._run(progress=progress, restart=restart)

    def _run(self, *, progress: bool, restart: bool) -> Path:
        if self._folder.was_finished():
            self._folder.clean_up()
            self.files.close()
            return self.target
        if not self._folder.path.exists():
            self._refuse_too_large([])
        with self._folder.opened(restart=restart):
            done = self._keep_whole_files()
            remaining = [unit for unit in self._units if unit.name not in done]
            self._refuse_too_large([unit for unit in self._units if unit.name in done])
            with self._shown(progress, remaining) as bar:
                self._write(remaining, bar)
            self._publish_small_files()
            self._verify(progress)
            self._folder.finish()
        self.files.close()
        return self.target

    def _refuse_existing(self) -> None:
        if _exists(self.target) and not self._folder.was_finished():
            self._folder.clean_up(only_if_empty=True)
            raise ConfigError(
                f"{self.target}: exists already; give a new folder or remove it first."
            )

    @property
    def _facts(self) -> Mapping[str, Any]:
        return {
            "source": self.files.identity,
            "scheme": quantization_settings(self.scheme),
            "format": FORMAT_VERSION,
        }

    def _done(self) -> dict[str, Path]:
        """Return the files of units that are whole by their headers."""
        units, done = {unit.name: unit for unit in self._units}, {}
        for path in self._folder.files():
            try:
                if path.name in units and units[path.name].holds(read_shard(path)):
                    done[path.name] = path
            except CheckpointError:
                continue  # it is made again
        return done

    def _keep_whole_files(self) -> set[str]:
        """Remove files that can't be used, and return the names of units that are finished.

        Small files stay until they are replaced, and the folder is listed once: on a system without
        locks another process may be about to finish.
        """
        files = self._folder.files()
        done = self._done()
        for path in files:
            if path.name not in done and path.name not in SMALL_FILES:
                self._folder.remove(path)
        return set(done)

    def _refuse_too_large(self, done: list[Unit]) -> None:
        remaining = [unit for unit in self._units if unit not in done]
        written = sum(unit.nbytes for unit in done)
        most = _most_at_once(remaining, self.files)
        small = self.nbytes - sum(unit.nbytes for unit in self._units)
        needed = max(most, self.nbytes - written) + small + PAGE * (len(self._units) + 16)
        if needed > (free := self.free_nbytes):
            raise CheckpointError(
                f"{self.target}: takes {needed / 2**30:.3f} GiB more at most, and "
                f"{free / 2**30:.3f} GiB are free on its disk: make room, give a target on "
                "another disk, or store fewer bits."
            )

    def _write(self, remaining: list[Unit], bar: "tqdm[None]") -> None:
        fetched = set(self.files.headers)
        for number, unit in enumerate(remaining):
            fetched = self._release(fetched, remaining[number:])
            bar.set_description(self._where(unit))
            for name in sorted(unit.sources):
                self.files.fetch(name)
            with self._folder.publishing(unit.name) as path:
                unit.write(path)
        self._release(fetched, [])

    def _release(self, fetched: set[str], remaining: list[Unit]) -> set[str]:
        """Release the files that no remaining unit is made of, and return those still needed."""
        needed = {name for unit in remaining for name in unit.sources}
        for name in sorted(fetched - needed):
            self.files.release(name)
        return fetched & needed

    def _where(self, unit: Unit) -> str:
        number = self._units.index(unit)
        return f"layer {number}/{self.num_layers}" if number else "embeddings and head"

    @contextmanager
    def _shown(self, progress: bool, remaining: list[Unit]) -> Iterator["tqdm[None]"]:
        left = sum(unit.num_weights for unit in remaining)
        with tqdm(
            total=self.num_weights,
            initial=self.num_weights - left,
            unit=" weights",
            unit_scale=True,
            disable=not progress,
        ) as bar:
            self._progress.bar = bar
            yield bar

    def _publish_small_files(self) -> None:
        model = self._folder.model
        crcs = {unit.name: read_shard(model / unit.name).header_crc32 for unit in self._units}
        for name, content in small_files(self._matrices, self._units, crcs).items():
            with self._folder.publishing(name) as path:
                write_durably(path, content)

    def _verify(self, progress: bool) -> None:
        for unit in tqdm(self._units, desc="verifying", unit="file", disable=not progress):
            path = self._folder.model / unit.name
            if damage := unit.find_damage(path):
                self._folder.remove(path)
                raise CheckpointError(
                    f"{path}: isn't what was written ({damage}), so it was removed: "
                    "do the same again to make it anew; if it happens again, check the disk."
                )
        MixoffCheckpoint.open(CheckpointFolder.open(self._folder.model))


@dataclass
class _Progress:
    """Passes how many weights are done to a progress bar, while one is shown."""

    bar: "tqdm[None] | None" = None

    def __call__(self, num_weights: int) -> None:
        if self.bar is not None:
            self.bar.update(num_weights)


def _most_at_once(units: list[Unit], files: SourceFiles) -> int:
    """Return the most bytes of new files and of fetched ones that lie on the disk at once."""
    written, most, fetched = 0, 0, set[str]()
    for number, unit in enumerate(units):
        fetched |= unit.sources & files.absent
        written += unit.nbytes
        most = max(most, written + sum(files.nbytes[name] for name in fetched))
        if files.frees:
            fetched &= {name for later in units[number + 1 :] for name in later.sources}
    return most


def _exists(path: Path) -> bool:
    try:
        return path.exists() or path.is_symlink()
    except OSError as error:
        raise CheckpointError(f"{path}: can't be written ({error.strerror}).") from error
