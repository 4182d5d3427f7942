"""Stage train: LeNet-5 by the recipe in params.yaml. About 2 minutes for 100 epochs on two CPU cores."""

from beside import outs_survive_failure, run_stage

import io
from functools import partial

import torch
from rich.console import Console

from lenet5.data.datasets import load_splits
from lenet5.data.fashion_mnist import RAW_DIR
from lenet5.files import digest, remove_old, write_bytes, write_json
from lenet5.network.lenet5 import layers
from lenet5.outs import HISTORY, TRAINING, WEIGHTS
from lenet5.params import Params
from lenet5.processors import use_own_share
from lenet5.record.attempt import begin, cut_short
from lenet5.record.lineage import Code, lineage_tags, read_code
from lenet5.record.result import digest_training, epoch_points, run_name
from lenet5.record.streaming import Run, Stream
from lenet5.results.history import HistoryFile
from lenet5.training.card_errors import card_errors
from lenet5.training.checkpoint import Checkpoint, result_key
from lenet5.training.device import card_facts
from lenet5.training.display import EpochDisplay, architecture_table, kept_weights
from lenet5.training.loop import Training, make_model, prepare
from lenet5.workspace import ATTEMPTS, CHECKPOINTS, LIBRARIES, PIPELINE_FILE, main_workspace


@card_errors()
def main(params: Params) -> None:
    """Train, or go on from the last checkpoint, streaming to MLflow; write weights, history and how it went."""
    console = Console()
    use_own_share()
    splits, engine = prepare(RAW_DIR, params, load_splits)
    device = splits.train.labels.device
    model = make_model(params.model, params.train.seed, device)
    console.print(architecture_table(layers(model)))
    console.print(f"{len(splits.train):,} training images on {device}")
    training = Training(model, splits, params.train, engine)
    key = result_key(params, PIPELINE_FILE, device, engine)
    checkpoint = Checkpoint(main_workspace() / CHECKPOINTS, key)
    if state := checkpoint.load():  # before the threads are told: it may bring its own number
        training.load_state_dict(state)
        console.print(f"going on after epoch {len(training.rows)}, from the checkpoint of an unfinished training")
    console.print(f"engine {engine.name}, {torch.get_num_threads()} threads: {engine.reason}")
    code = read_code()  # now: a tracking server may come to life when somebody has changed the code already
    cpu, threads = torch.backends.cpu.get_cpu_capability(), str(torch.get_num_threads())
    card = {f"device.{name}": fact for name, fact in card_facts(device).items()}
    engine_tags = {"device": device.type, "engine": engine.name, "threads": threads, "cpu": cpu}
    tags = lineage_tags(code) | engine_tags | card
    with (
        begin(main_workspace() / ATTEMPTS, key, run_name(params)) as attempt,
        Stream(partial(open_run, params, attempt.name, code, tags)) as stream,
        card_errors(),  # last, so that the run gets the reason in words
    ):
        with (
            HistoryFile(HISTORY, training.rows) as history,
            EpochDisplay(console, params, len(splits.train), training.rows) as display,
        ):
            for row in training.rows:  # of an earlier process, which may have ended before it sent them
                stream.send(epoch_points(row, None))
            for row in training.epochs():
                history.append(row)
                stream.send(epoch_points(row, display.show(row)))
                checkpoint.save_if_due(training.state_dict)
            write(training)
        # From here on all outs are there, whatever ends the process.
        training_digest = digest_training(params)
        attempt.finished(training_digest)
        page = stream.finish(training_digest)
        checkpoint.remove()
    console.print(kept_weights(training.rows, training.chosen_epoch, params), soft_wrap=True, highlight=False)
    if page:
        print(f"MLflow run: {page}")
    for folder in (CHECKPOINTS, ATTEMPTS, LIBRARIES):  # last: this training may have been one that nobody took up
        remove_old(main_workspace() / folder)


def write(training: Training) -> None:
    """Write the outs, the weights through memory: torch.save puts the name of its file into the file."""
    buffer = io.BytesIO()
    torch.save(training.weights, buffer)
    weights = buffer.getvalue()
    write_bytes(WEIGHTS, weights)
    epochs = {"epochs": len(training.rows), "chosen_epoch": training.chosen_epoch}
    write_json(TRAINING, {**epochs, "weights_sha256": digest(weights)})


def open_run(params: Params, attempt: str, code: Code, tags: dict[str, str]) -> Run:
    """Open the MLflow run of this training, or find it again. The stream's thread calls it: mlflow imports slowly."""
    from lenet5.record.addresses import is_server
    from lenet5.record.live_run import TrainingRun, close_cut_short
    from lenet5.record.store import connect, user_errors

    store = connect(params)
    with user_errors(store.uri, then=""):
        close_cut_short(store, [one.name for one in cut_short(main_workspace() / ATTEMPTS)])
        run = TrainingRun(store, attempt, params, code, tags)
    if is_server(store.uri):
        print(f"MLflow run, live: {store.page_of(run.run_id)}", flush=True)
    return run


if __name__ == "__main__":
    with outs_survive_failure("train"):
        run_stage("train", main)
