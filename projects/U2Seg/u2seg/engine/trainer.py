"""The trainer: Detectron2's, with loader, evaluators and optimizer from the registries."""

import contextlib
import logging
import os
import random
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.engine import DefaultTrainer, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from fvcore.nn.precise_bn import get_bn_modules

from u2seg.checkpoint.checkpointer import AtomicCheckpointer
from u2seg.data import build_mapper, build_train_loader
from u2seg.engine import training_record
from u2seg.engine.expected_results import verify_expected_results
from u2seg.engine.hooks import HOOK_REGISTRY, AveragedWeights, EMAHook, VisualizationHook
from u2seg.engine.log_writers import build_log_writers
from u2seg.engine.training_step import TrainingStep, resolve_precision
from u2seg.evaluation import EVALUATOR_REGISTRY
from u2seg.evaluation.evaluator import RecordingEvaluator, weights_in_memory, weights_of_file
from u2seg.modeling import build_model, checkpoint_residual_blocks
from u2seg.modeling.stable_order import StableOrder
from u2seg.solver.build import build_optimizer
from u2seg.utils.files import fill_directory, remove_partial_files, write_json
from u2seg.utils.progress import Progress
from u2seg.utils.registry import get_registered
from u2seg.utils.write_errors import clear_write_errors
from u2seg.version import __version__

logger = logging.getLogger(__name__)


def _log_period(max_iter: int) -> int:
    """Returns the iterations between two lines of the log: Detectron2's 20, fewer where the curves would have too few points."""
    # Not below 4: Detectron2 knows the time of an iteration from the third on, and fails without it where a training is interrupted.
    return min(20, max(4, max_iter // 20))


class U2SegTrainer(DefaultTrainer):
    """Detectron2's ``DefaultTrainer`` with our loader, optimizers, evaluators, precise resuming and safe checkpoints.

    The configuration must be complete: :func:`u2seg.engine.complete_config`.
    """

    def __init__(self, cfg: CfgNode):
        """Builds model, optimizer, loader and hooks.

        Args:
            cfg: a complete configuration. ``SEED`` below 0 draws a seed, which is logged and kept in the checkpoints.
        """
        # Not DefaultTrainer's own constructor, which allows no other loader seed, step or checkpointer.
        TrainerBase.__init__(self)
        self.seed = cfg.SEED if cfg.SEED >= 0 else _drawn_seed()
        logger.info(f"Seed: {self.seed}")
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        torch.manual_seed(self.seed)  # the random weights, the same in all processes
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        # On the CPU there is no device to name, and Detectron2 would name one.
        devices = {"device_ids": None} if cfg.MODEL.DEVICE == "cpu" else {}
        model = create_ddp_model(model, broadcast_buffers=False, **devices)
        self.cfg = cfg
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.checkpointer = AtomicCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self._trainer = TrainingStep(
            model,
            build_train_loader(cfg, self.seed),
            optimizer,
            seed=self.seed,
            accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
            precision=resolve_precision(cfg),
            last_checkpoint=self._last_checkpoint,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.average = AveragedWeights(model, cfg.SOLVER.EMA.DECAY) if cfg.SOLVER.EMA.ENABLED else None
        if self.average is not None:
            self.checkpointer.add_checkpointable("ema", self.average)
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Goes on from the run directory's last checkpoint if asked to and there is one; else loads ``MODEL.WEIGHTS``.

        Weights of heads with other class counts are left out and start at random, as fine-tuning needs it; Detectron2 logs them.
        """
        super().resume_or_load(resume)
        if self.average is not None and self.average.updates == 0:
            self.average.reset()  # from the weights that were loaded
        self._trainer.data_loader.batch_sampler.start_batch = self.start_iter * self.cfg.SOLVER.ACCUMULATION_STEPS

    def train(self) -> OrderedDict:
        """Trains from the first iteration, or the one to go on from, to the last; returns the scores of the evaluation at the end.

        A training that was killed behind its last iteration and before ``model_final.pth`` was marked as the last checkpoint writes that
        file now; the evaluation at the end runs again. A run that misses one of ``TEST.EXPECTED_RESULTS`` ends with an error, see
        :func:`u2seg.engine.expected_results.verify_expected_results`.
        """
        if self.start_iter >= self.max_iter and Path(self._last_checkpoint()).name != f"{training_record.FINAL}.pth":
            self.checkpointer.save(training_record.FINAL, iteration=self.max_iter - 1)
        TrainerBase.train(self, self.start_iter, self.max_iter)
        results = getattr(self, "_last_eval_results", None) or OrderedDict()
        verify_expected_results(self.cfg, results)
        return results

    def build_hooks(self) -> list:
        """Returns the hooks in the order in which they run after a step: weights first, then checkpoint, scores, log."""
        cfg, main = self.cfg, comm.is_main_process()
        precise_bn = cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model)
        found = [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            EMAHook(self.average, cfg.OUTPUT_DIR) if self.average is not None else None,
            hooks.PreciseBN(
                cfg.TEST.EVAL_PERIOD, self.model, self.build_train_loader(cfg), cfg.TEST.PRECISE_BN.NUM_ITER
            )
            if precise_bn
            else None,
            hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD) if main else None,
            VisualizationHook(cfg) if cfg.TEST.SAMPLE_PERIOD > 0 and main else None,
            hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._score) if cfg.DATASETS.TEST else None,
            *(get_registered(HOOK_REGISTRY, name, "HOOKS")(cfg, self) for name in cfg.HOOKS),
            hooks.PeriodicWriter(self.build_writers(), period=_log_period(self.max_iter)) if main else None,
        ]
        return [hook for hook in found if hook is not None]

    def build_writers(self) -> list[EventWriter]:
        """Returns Detectron2's writers (console, ``metrics.json``, TensorBoard), and those that ``LOG_TO`` names."""
        return [*super().build_writers(), *build_log_writers(self.cfg)]

    def _score(self) -> OrderedDict:
        """Scores the averaged weights where there are some, else the model's own; Detectron2's EvalHook calls it."""
        with self.scored_weights():
            self._last_eval_results = self.test(self.cfg, self.model, weights=self._scored_record())
        return self._last_eval_results

    def _scored_record(self) -> dict[str, str]:
        """Returns which weights the model has now, for the record: a file's at the end of a training, else those of an iteration."""
        if not comm.is_main_process():  # nobody else writes, and the file may be unfinished when seen from there
            return {}
        averaged = self.average is not None
        final = Path(self.cfg.OUTPUT_DIR) / (training_record.AVERAGED if averaged else f"{training_record.FINAL}.pth")
        if self.iter >= self.max_iter and final.is_file():
            return weights_of_file(final)
        done = min(self.iter + 1, self.max_iter)
        name = f"{'averaged weights of ' if averaged else ''}{self.cfg.OUTPUT_DIR} after {done} iterations"
        return weights_in_memory(name, self.model.state_dict())

    def scored_weights(self) -> contextlib.AbstractContextManager:
        """Returns a block in which the model has the weights that are scored: the averaged ones where there are some."""
        return self.average.applied() if self.average is not None else contextlib.nullcontext()

    def state_dict(self) -> dict:
        """Returns what a resumed training needs, the seed included."""
        return {**super().state_dict(), "seed": self.seed}

    def load_state_dict(self, state_dict: dict) -> None:
        """Takes over what :meth:`state_dict` returned; a seed that was drawn is drawn no second time."""
        super().load_state_dict(state_dict)
        if "seed" in state_dict and state_dict["seed"] != self.seed:
            if self.cfg.SEED >= 0:
                logger.warning(f"SEED is {self.seed}, the run that is resumed had {state_dict['seed']}")
            else:
                self.seed = state_dict["seed"]
                self._trainer.seed = self.seed
                self._trainer.reset_data_loader(lambda: build_train_loader(self.cfg, self.seed))

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        """Returns the model that the configuration names, with its memory options applied."""
        model = build_model(cfg)
        logging.getLogger(DefaultTrainer.__module__).info(f"Model:\n{model}")
        if cfg.MODEL.CHANNELS_LAST:
            model = model.to(memory_format=torch.channels_last)
        if cfg.MODEL.ACTIVATION_CHECKPOINTING:
            checkpoint_residual_blocks(model.backbone)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Returns the optimizer from ``OPTIMIZER_REGISTRY``."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict]]:
        """Returns a training loader from ``DATASET_MAPPER_REGISTRY``'s mapper."""
        return build_train_loader(cfg, max(cfg.SEED, 0))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict]]:
        """Returns a test loader with the registered mapper."""
        return build_detection_test_loader(cfg, dataset_name, mapper=build_mapper(cfg, False))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Returns the evaluator that the dataset's ``evaluator_type`` names.

        Raises:
            ValueError: the dataset names none, since it has no ground truth.
            UnknownNameError: an unknown one.
        """
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
        output_dir = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        if kind is None:
            raise ValueError(f"Dataset {dataset_name!r} cannot be scored: it has no ground truth (no evaluator_type)")
        return get_registered(EVALUATOR_REGISTRY, kind, f"evaluator_type of {dataset_name}")(
            dataset_name, cfg, output_dir
        )

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: torch.nn.Module,
        evaluators: DatasetEvaluator | Sequence[DatasetEvaluator] | None = None,
        weights: Mapping[str, str] = MappingProxyType({}),
    ) -> OrderedDict:
        """Returns the scores on ``DATASETS.TEST``, from one inference pass over each set; the main process prints one table a set.

        Args:
            cfg: the configuration.
            model: with its weights.
            evaluators: one for each test set; None: those that the datasets name.
            weights: which weights the model has, for the record; see :class:`u2seg.evaluation.evaluator.RecordingEvaluator`.

        Returns:
            The evaluator's result where there is one test set, else dataset -> result; empty in other processes than the main one.
        """
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        results: OrderedDict = OrderedDict()
        for index, name in enumerate(cfg.DATASETS.TEST):
            evaluator = cls.build_evaluator(cfg, name) if evaluators is None else evaluators[index]
            if isinstance(evaluator, RecordingEvaluator):
                evaluator.weights = weights
            loader = cls.build_test_loader(cfg, name)
            with StableOrder():  # as the predictor has it: one model, one output
                scores = inference_on_dataset(model, _CountedBatches(loader), evaluator)
            results[name] = scores or {}
        return next(iter(results.values())) if len(results) == 1 else results

    def _last_checkpoint(self) -> str:
        return self.checkpointer.get_checkpoint_file()


class _CountedBatches:
    """A test loader that shows, from the main process, how many of that process's images are scored and how long the rest takes."""

    def __init__(self, loader: torch.utils.data.DataLoader):
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[dict]]:
        if not comm.is_main_process():
            yield from self._loader
            return
        share = -(-len(self._loader.dataset) // comm.get_world_size())
        with Progress(share, "scoring") as bar:
            for batch in self._loader:
                yield batch
                bar.update(len(batch))


def train_and_record(cfg: CfgNode, resume: bool) -> OrderedDict:
    """Returns the scores of one training in ``OUTPUT_DIR``, which afterwards says with what it was made and that it is finished.

    Args:
        cfg: complete.
        resume: whether to go on from the directory's last checkpoint.

    Raises:
        u2seg.utils.write_errors.WriteError: the disk is full, or ``OUTPUT_DIR`` is read-only or was deleted. The last checkpoint is
            kept.
    """
    # Detectron2 writes its log of losses without naming the file in its errors.
    with clear_write_errors(cfg.OUTPUT_DIR):
        return _train_and_record(cfg, resume)


def _train_and_record(cfg: CfgNode, resume: bool) -> OrderedDict:
    for line in training_record.differences(cfg) if resume else ():
        logger.warning(f"This training goes on with other settings than it began with: {line}")
    comm.synchronize()  # all processes have read what the main one now writes
    if comm.is_main_process():
        fill_directory(cfg.OUTPUT_DIR)
        remove_partial_files(cfg.OUTPUT_DIR)
        training_record.begin(cfg)
    trainer = U2SegTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    if comm.is_main_process():
        write_json(
            Path(cfg.OUTPUT_DIR) / "run.json",
            {"u2seg": __version__, "torch": torch.__version__, "seed": trainer.seed, "weights": cfg.MODEL.WEIGHTS},
        )
    scores = trainer.train()
    if comm.is_main_process():
        training_record.finish(cfg)
    comm.synchronize()
    return scores


def _drawn_seed() -> int:
    """Returns a random seed on which all processes agree."""
    return comm.all_gather(random.SystemRandom().getrandbits(31))[0]
