"""Get a data set from the addresses in its YAML, checked.

    python -m data.download coco --splits val

Nothing is downloaded or unpacked twice: what was cut off goes on, what is complete is left alone. Archives, and a
record of what came out of each, are kept in `.downloads` in the data set's folder until they are unpacked.
"""

import hashlib
import json
import sys
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from data.config import SPLITS, Archive, DataConfig, load_data_config, prepare, require_split
from data.fetch import check, fetch
from data.unpack import DamagedError, unpack
from utils.options import InputError, Ranged, option, refuse_unknown, run_script
from utils.report import write_text_atomically

FOLDER = ".downloads"


@dataclass
class Options(Ranged):
    """Command line of data.download; a field is a flag."""

    data: str = option("", "data YAML, also by its name in data/, with or without .yaml", positional=True)
    splits: str = option("train,val", "the splits wanted, separated by commas")


def main(options: Options) -> None:
    """Download what the options ask for, and say what is missing still."""
    name = options.data if options.data.endswith((".yaml", ".yml")) else f"{options.data}.yaml"
    config = load_data_config(name)
    splits = [split.strip() for split in options.splits.split(",")]
    refuse_unknown(splits, SPLITS, "--splits")
    prepare(config)
    if not config.download and not config.converter:
        raise InputError(f"{config.source}: download: missing; expected the addresses of the data")
    wanted = [archive for archive in config.download if not archive.splits or set(splits) & set(archive.splits)]
    try:
        for archive in wanted:
            get(archive, config.root)
    except OSError as error:
        raise InputError(f"{config.root}: cannot be written: {error}") from error
    for split in splits:
        if split in config.splits:
            _say(_outcome(config, split))


def get(archive: Archive, root: Path) -> None:
    """Download an archive and unpack it below `root`, as far as that is not done."""
    name = archive.name
    key = hashlib.sha256(repr(astuple(replace(archive, splits=[]))).encode()).hexdigest()[:8]
    file, record = root / FOLDER / f"{key}-{name}", root / FOLDER / f"{key}-{name}.json"
    if _is_unpacked(record, root / archive.to):
        _say(f"{name}: is there")
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    own = _own_copy(archive, root / name)
    if not own and not file.exists():
        fetch(archive, file)
    try:
        files = unpack(own or file, root / archive.to, strip=archive.strip)
    except DamagedError:
        file.unlink(missing_ok=True)  # the next run downloads it anew
        raise
    write_text_atomically(record, json.dumps(files))
    file.unlink(missing_ok=True)
    _say(f"{name}: {len(files):,} file{'' if len(files) == 1 else 's'} in {(root / archive.to).resolve()}")


def _is_unpacked(record: Path, folder: Path) -> bool:
    """Whether every file that came out of an archive is still there, with its size."""
    if not record.is_file():
        return False
    files = json.loads(record.read_text(encoding="utf-8"))
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in files.items())


def _own_copy(archive: Archive, file: Path) -> Path | None:
    """The archive as the user has put it into the data set's folder, if it can be told to be whole."""
    if not file.is_file() or (archive.size is None and archive.sha256 is None):
        return None
    try:
        check(archive, file)
    except InputError as error:
        _say(f"{file}: not used: {error}")
        return None
    return file


def _outcome(config: DataConfig, split: str) -> str:
    try:
        require_split(config, split)
    except InputError:
        return f"{split}: its files have to be put in order by hand: see the notes in {config.source}"
    return f"{split}: complete"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run_script(main, Options, "Get a data set from the addresses in its YAML, checked.")
