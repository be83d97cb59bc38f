import pytest
import torch

from dit_heads.errors import InputError
from dit_heads.tasks.soft_tokens.probes import Probed, Target, best, probed, scores

SCENES, TOKENS, HEADS, DIM = 60, 9, 4, 5


def made(noise: float = 0.1) -> tuple[torch.Tensor, Target]:
    """Head 2 knows a hidden number of each token; head 1 knows half of it; the others nothing."""
    g = torch.Generator().manual_seed(0)
    features = torch.randn(SCENES, TOKENS, HEADS, DIM, generator=g)
    weights = torch.randn(DIM, 2, generator=g)
    values = features[:, :, 2] @ weights + noise * torch.randn(SCENES, TOKENS, 2, generator=g)
    mixed = values + values.std() * torch.randn(SCENES, TOKENS, 2, generator=g)
    features[:, :, 1, :2] = mixed
    counted = torch.rand(SCENES, TOKENS, generator=g) < 0.8
    values[~counted] = 99.0
    return features, Target(values + 10 * torch.arange(TOKENS)[:, None], counted)


def test_the_head_that_knows_has_the_best_score_in_both_halves_and_beats_the_null():
    features, target = made()
    found = probed(features, target, permutations=8)
    assert found.scores.argmax() == 2 and found.scores[2] > 0.9
    assert 0.3 < found.scores[1] < 0.7
    assert found.scores[0] < found.threshold < found.scores[1]
    assert found.agreement > 0.9 and (found.halves.argmax(1) == 2).all()


def test_a_probe_is_the_least_squares_fit_of_numpy():
    features, target = made()
    pictures = torch.arange(SCENES)
    fit, test = pictures[:40], pictures[40:]
    values, counted = target.values.double(), target.counted
    mean = torch.stack([values[fit, n][counted[fit, n]].mean(0) for n in range(TOKENS)])

    def rows(some: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return features[some][:, :, 2][counted[some]].double(), (values[some] - mean)[counted[some]]

    (x, y), (x_test, y_test) = rows(fit), rows(test)
    centre = x.mean(0)
    weights = torch.linalg.lstsq(x - centre, y).solution
    expected = 1 - (y_test - (x_test - centre) @ weights).pow(2).sum() / y_test.pow(2).sum()
    assert scores(features, target, pictures)[2].item() == pytest.approx(expected.item(), abs=1e-3)


def test_what_the_place_alone_says_is_no_merit_of_a_head():
    features, target = made()
    features[:, :, 0, 0] = torch.arange(TOKENS)  # head 0 knows the place, on which the target depends most
    assert probed(features, target, permutations=2).scores[0] < 0.05


def test_the_best_heads_have_the_best_mean_rank():
    each = torch.tensor([[0.1, 0.5, 0.3, 0.0], [0.2, 0.4, 0.9, 0.1]])
    found = {str(k): Probed(row, row.expand(2, -1), row) for k, row in enumerate(each)}
    assert best(found, 2) in ([1, 2], [2, 1]) and best(found, 4)[2:] == [0, 3]


def test_too_few_pictures_and_targets_that_are_nowhere_are_refused():
    features, target = made()
    with pytest.raises(InputError, match="pictures: expected 12 at least"):
        probed(features[:8], Target(target.values[:8], target.counted[:8]))
    with pytest.raises(InputError, match="target: expected a token or more"):
        probed(features, Target(target.values, torch.zeros_like(target.counted)))
