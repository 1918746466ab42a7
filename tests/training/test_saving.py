"""Which checkpoint counts as the best."""

from unittest import mock

from cifar_jax.evaluation.scores import Scores
from cifar_jax.training import saving


def test_the_best_of_several_seeds_is_that_of_their_mean():
    run = mock.Mock(seeds=[0, 1])
    run.dataset.splits = {"validation": None}
    scores = [Scores(1.0, 0.5, 2, 4, 0.5), Scores(2.0, 1.0, 4, 4, 1.0)]
    saving.is_best(run, scores)
    run.checkpoints.is_best.assert_called_once_with(0.75)
    with (
        mock.patch.object(saving, "all_finite", return_value=[True, True]),
        mock.patch.object(saving, "describe_data"),
        mock.patch.object(saving.stored, "to_json"),
    ):
        saving.save_checkpoint(run, mock.Mock(), mock.Mock(), scores)
    assert run.checkpoints.save.call_args[0][-1] == {"eval_accuracy": 0.75, "eval_loss": 1.5}
