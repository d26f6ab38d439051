"""The flags that the training scripts of all tasks have."""

from dataclasses import dataclass

from utils.hyp import OPTIMIZERS
from utils.options import Ranged, option


@dataclass
class RunOptions(Ranged):
    """Flags of every training script; a field is a flag."""

    weights: str = option("", "checkpoint to start from; empty trains from scratch")
    data: str = option("", "data set")
    hyp: str = option("", "recipe, also by its name in data/hyps/")
    epochs: int = option(100, "passes over the training images", least=1)
    batch_size: int = option(16, "images in a batch; -1 takes what fits in the GPU's memory", aliases=("--batch",))
    imgsz: int = option(640, "image size in pixels, of the longer side", aliases=("--img", "--img-size"), least=1)
    resume: str | None = option(None, "continue a run from its last.pt, by default --project's newest", bare="newest")
    nosave: bool = option(False, "keep the last checkpoint only")
    noval: bool = option(False, "validate after the last epoch only")
    noplots: bool = option(False, "write no pictures")
    device: str = option("", "cpu, or a GPU's number; empty chooses")
    optimizer: str | None = option(None, "SGD, Adam or AdamW; the recipe's when not given", choices=OPTIMIZERS)
    workers: int = option(8, "processes that load images, no more than there are cores", least=0)
    project: str = option("runs/train", "folder of runs")
    name: str = option("exp", "name of the run")
    exist_ok: bool = option(False, "write into an existing run's folder")
    cos_lr: bool = option(False, "cosine learning-rate schedule, not linear")
    label_smoothing: float | None = option(
        None, "share taken from the true class; the recipe's when not given", least=0, most=1
    )
    patience: int = option(100, "epochs without improvement before stopping; 0 never stops", least=0)
    save_period: int = option(-1, "keep a checkpoint every so many epochs")
    save_interval: float = option(0, "minutes between checkpoints within an epoch; 0 saves at its end only", least=0)
    fitness: str = option("", "figures whose sum chooses best.pt")
    seed: int = option(0, "seed of everything random", least=0)
    amp: bool = option(True, "reduced precision where the hardware has it")
    fold: bool = option(True, "run space-to-depth and the convolution after it in one step, exactly")
    compile: bool = option(False, "let torch.compile make kernels; takes minutes, then saves time")
