import torch

from dist_train.head.rounding import StochasticRounder

CPU = torch.device("cpu")


def test_the_mean_of_roundings_is_the_value():
    rounder = StochasticRounder(1, 0, CPU)
    values = torch.tensor([[1.001, -1.001, 0.3333, 3e-5, -7e-20, 1.0, 0.0, -250.7]]).expand(700, 8)
    total, draws = torch.zeros(8, dtype=torch.float64), 40
    for step in range(draws):
        rounder.new_step(step)
        rounded = rounder.round(values.clone(), torch.empty(700, 8, dtype=torch.bfloat16))
        total += rounded.double().mean(dim=0)
    spacing = torch.finfo(torch.bfloat16).eps * values[0].abs().double()
    error = (total / draws - values[0].double()).abs()
    assert (error <= spacing * 0.5 / (700 * draws) ** 0.5 * 5).all()


def test_a_value_goes_to_one_of_its_two_neighbours():
    rounder = StochasticRounder(1, 0, CPU)
    rounder.new_step(0)
    values = torch.full((4000, 1), 1.0 + 2**-9)
    rounded = rounder.round(values.clone(), torch.empty(4000, 1, dtype=torch.bfloat16)).float()
    assert set(rounded.flatten().tolist()) == {1.0, 1.0 + 2**-7}
    assert abs(float((rounded > 1).float().mean()) - 0.25) < 0.04


def test_values_that_bfloat16_holds_are_kept():
    rounder = StochasticRounder(1, 0, CPU)
    rounder.new_step(0)
    values = torch.randn(100, 16).bfloat16()
    assert torch.equal(rounder.round(values.float(), torch.empty_like(values)), values)


def test_rows_steps_and_ranks_meet_different_noise():
    def rounded(seed, rank, step):
        rounder = StochasticRounder(seed, rank, CPU)
        rounder.new_step(step)
        return rounder.round(torch.full((1100, 64), 1.003), torch.empty(1100, 64, dtype=torch.bfloat16))

    first = rounded(1, 0, 5)
    assert torch.equal(first, rounded(1, 0, 5))
    for other in (rounded(1, 1, 5), rounded(1, 0, 6), rounded(2, 0, 5)):
        assert not torch.equal(first, other)
    assert len({tuple(row.tolist()) for row in first}) > 1000
