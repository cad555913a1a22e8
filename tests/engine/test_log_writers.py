"""Losses and scores on their way to Weights & Biases and MLflow, and what a training shows on the screen."""

import argparse
import importlib.util
import json
import sys
from types import SimpleNamespace

import pytest
from detectron2.utils.events import EventStorage
from u2seg.cli.main import parse_arguments
from u2seg.engine import U2SegTrainer, training_record
from u2seg.engine.launch import _set_up
from u2seg.engine.log_writers import ScalarWriter, build_log_writers


def test_each_scalar_is_passed_on_once_with_its_iteration():
    logged, closed = [], []
    writer = ScalarWriter(lambda values, iteration: logged.append((iteration, values)), lambda: closed.append(True))
    with EventStorage(5) as storage:
        storage.put_scalars(loss=2.0, lr=0.5, smoothing_hint=False)
        writer.write()
        writer.write()
        storage.step()
        storage.put_scalar("loss", 1.0, smoothing_hint=False)
        writer.write()
    writer.close()
    assert logged == [(5, {"loss": 2.0, "lr": 0.5}), (6, {"loss": 1.0})] and closed == [True]


class FakeWandb:
    """Keeps what it is given; a run's number is that of the call."""

    def __init__(self):
        self.calls, self.logged = [], []

    def init(self, **arguments):
        self.calls.append(arguments)
        name = arguments["id"] or f"run{len(self.calls)}"
        return SimpleNamespace(id=name, log=self.log, finish=lambda: self.logged.append((name, "finished")))

    def log(self, values, step):
        self.logged.append((step, sorted(values)))


def test_a_training_writes_to_wandb_and_a_resumed_one_goes_on_in_the_same_run(tiny_cfg, tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    cfg = tiny_cfg(tmp_path / "model", "LOG_TO", "('wandb',)", "SOLVER.MAX_ITER", "2")
    (tmp_path / "model").mkdir()
    trainer = U2SegTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    (step, names), finished = fake.logged[-2:]
    assert step == 1 and {"total_loss", "lr"} <= set(names) and finished == ("run1", "finished")
    assert fake.calls[0]["config"]["SOLVER"]["MAX_ITER"] == 2 and fake.calls[0]["name"] == "model"
    build_log_writers(cfg)
    assert [call["id"] for call in fake.calls] == [None, "run1"]
    # Where it is written has no influence on the weights.
    assert "LOG_TO" not in training_record.training_settings(cfg)


@pytest.mark.skipif(not importlib.util.find_spec("mlflow"), reason="the package mlflow is not installed")
def test_mlflow_keeps_the_scalars(tiny_cfg, tmp_path, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    cfg = tiny_cfg(tmp_path, "LOG_TO", "('mlflow',)")
    for iteration, value in ((0, 3.0), (1, 2.0)):  # the second one resumes the first one's run
        [writer] = build_log_writers(cfg)
        with EventStorage(iteration) as storage:
            storage.put_scalar("loss (a)", value, smoothing_hint=False)
            writer.write()
        writer.close()
    run = mlflow.get_run((tmp_path / "mlflow_run").read_text())
    assert run.data.metrics == {"loss _a_": 2.0}
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss _a_")
    assert [(one.step, one.value) for one in history] == [(0, 3.0), (1, 2.0)]


def test_a_missing_package_and_an_unknown_name_are_one_line(tiny_cfg, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match=r"--log-to wandb needs .*pip install 'u2seg\[wandb\]'"):
        build_log_writers(tiny_cfg(tmp_path, "LOG_TO", "('wandb',)"))
    with pytest.raises(ValueError, match="Unknown LOG_TO 'paper'; registered: mlflow, tensorboard, wandb"):
        build_log_writers(tiny_cfg(tmp_path, "LOG_TO", "('paper',)"))
    assert (
        build_log_writers(tiny_cfg(tmp_path))
        == build_log_writers(tiny_cfg(tmp_path, "LOG_TO", "('tensorboard',)"))
        == []
    )


def test_the_command_line_takes_several(monkeypatch):
    command, args = parse_arguments(
        ["train", "--config-file", "x.yaml", "--log-to", "wandb", "--log-to", "mlflow", "SEED", "1"]
    )
    monkeypatch.setattr(command, "launch_processes", lambda function, given: None)
    command.run(args)
    assert args.opts == ["SEED", "1", "LOG_TO", "('wandb', 'mlflow')"]


def test_the_full_configuration_goes_to_the_file_and_not_to_the_screen(tiny_cfg, tmp_path, capsys):
    cfg = tiny_cfg(tmp_path / "run")
    _set_up(cfg, argparse.Namespace(config_file="", eval_only=True))
    U2SegTrainer.build_model(cfg)
    screen, log = capsys.readouterr().out, (tmp_path / "run/log.txt").read_text()
    for beginning in ("Running with full config", "Environment info:", "Model:"):
        assert beginning in log and beginning not in screen
    assert f"Everything of this run goes to {tmp_path / 'run'}" in screen
    assert "Full config saved to" in screen and (tmp_path / "run/config.yaml").is_file()
    assert json.dumps("IMS_PER_BATCH").strip('"') in log and "IMS_PER_BATCH" not in screen
