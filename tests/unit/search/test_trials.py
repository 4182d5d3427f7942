from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from lenet5.params import Params
from lenet5.results.history import EpochRow
from lenet5.search.trials import chosen_row, is_over, is_stuck
from lenet5.training.loop import Progress
from tests.params import CONTENT

from .conftest import row

BASE = Params.model_validate(CONTENT).train


@given(
    losses=st.lists(st.sampled_from([0.3, 0.4, 0.5, 0.6]), min_size=1, max_size=8),
    weights=st.sampled_from(["last", "best_validation"]),
    patience=st.integers(0, 4),
)
def test_a_search_knows_the_end_and_the_weights_of_a_training_as_training_does(
    losses: list[float], weights: Literal["last", "best_validation"], patience: int
) -> None:
    params = BASE.model_copy(update={"epochs": len(losses), "weights": weights, "patience": patience})
    training, rows = Progress(params), []
    for epoch, loss in enumerate(losses, 1):
        rows.append(row(epoch, loss))
        training.add(EpochRow(**rows[-1]), {})
        assert chosen_row(rows, params)["epoch"] == training.chosen_epoch
        assert is_over(rows, params) == (epoch == len(losses) or training.out_of_patience())
        if is_over(rows, params):
            return


def test_a_trial_that_is_right_as_often_as_chance_may_be_is_stuck() -> None:
    assert is_stuck([row(1, 2.3, 0.1), row(2, 2.3, 0.15)])
    assert not is_stuck([row(1, 2.3, 0.1), row(2, 2.2, 0.16), row(3, 2.3, 0.1)])
