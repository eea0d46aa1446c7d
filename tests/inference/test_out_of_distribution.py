import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis

from gampen_ray.inference.out_of_distribution import OutOfDistribution, features, shrunk_covariance


def correlated(count, seed=0, size=4):
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(7).normal(size=(size, size)) * 10.0 ** np.arange(size)
    return rng.normal(size=(count, size)) @ mixing + 3.0


def test_features_are_mean_scatter_and_maximum_of_each_channel():
    maps = torch.tensor([[[[0.0, 2.0], [4.0, 6.0]], [[5.0, 5.0], [5.0, 5.0]]]])
    np.testing.assert_allclose(features(maps), np.arcsinh([[3.0, 5.0, np.sqrt(5.0), 0.0, 6.0, 5.0]]), rtol=1e-6)
    assert features(maps.bfloat16()).dtype == np.float64


def test_features_behind_the_convolutions_have_no_scatter():
    expected = np.arcsinh([[1.0, -2.0, 0.0, 0.0, 1.0, -2.0]])
    np.testing.assert_allclose(features(torch.tensor([[1.0, -2.0]])), expected, rtol=1e-15)


def test_distance_is_scipys_for_many_images():
    training, images = correlated(200_000), correlated(5, seed=1)
    novelty = OutOfDistribution.fit(training, images)
    inverse = np.linalg.inv(np.cov(training.T))
    expected = [mahalanobis(image, training.mean(axis=0), inverse) for image in images]
    np.testing.assert_allclose(novelty.distance(images), expected, rtol=1e-3)


def test_distance_does_not_depend_on_the_units_of_a_feature():
    training, images, units = correlated(50), correlated(5, seed=1), np.array([1.0, 1e-3, 50.0, 1e4])
    one, other = OutOfDistribution.fit(training, images), OutOfDistribution.fit(training * units, images * units)
    np.testing.assert_allclose(other.distance(images * units), one.distance(images), rtol=1e-8)
    assert other.threshold == pytest.approx(one.threshold, rel=1e-8)


def test_threshold_lets_999_of_1000_held_out_images_pass():
    novelty = OutOfDistribution.fit(correlated(5_000), correlated(20_000, seed=1))
    assert novelty.unusual(correlated(20_000, seed=1)).mean() == pytest.approx(1e-3, rel=1e-6)
    assert novelty.unusual(correlated(20_000, seed=2)).mean() == pytest.approx(1e-3, rel=0.7)
    assert novelty.unusual(correlated(200, seed=2) + 50.0 * correlated(200, seed=3).std(axis=0)).all()


def test_features_that_are_not_finite_are_unusual():
    novelty = OutOfDistribution.fit(correlated(50), correlated(50, seed=1))
    assert novelty.unusual(np.array([[np.nan] * 4, [np.inf, 3, 3, 3], [3.0] * 4])).tolist() == [True, True, False]


def test_a_channel_dead_in_training_but_active_in_an_image_is_unusual():
    training = np.c_[correlated(500), np.zeros(500)]
    novelty, without = OutOfDistribution.fit(training, training), OutOfDistribution.fit(training[:, :4], training[:, :4])
    np.testing.assert_allclose(novelty.distance(training), without.distance(training[:, :4]), rtol=0.1)
    alive = training[:1].copy()
    alive[0, 4] = 5.0
    assert novelty.unusual(alive).all()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_images_than_features(count):
    novelty = OutOfDistribution.fit(correlated(count, size=8), correlated(count, seed=1, size=8))
    assert np.isfinite(novelty.distance(correlated(3, seed=2, size=8))).all()


def test_shrinkage_is_the_formula_of_ledoit_and_wolf_written_out():
    x = correlated(6) - correlated(6).mean(axis=0)
    n, p = x.shape
    sample = x.T @ x / n

    def norm2(a):
        return (a**2).sum() / p

    m = np.trace(sample) / p
    d2 = norm2(sample - m * np.eye(p))
    b2 = min(sum(norm2(np.outer(row, row) - sample) for row in x) / n**2, d2)
    assert 0 < b2 < d2
    np.testing.assert_allclose(shrunk_covariance(x), b2 / d2 * m * np.eye(p) + (d2 - b2) / d2 * sample, rtol=1e-10)


def test_many_rows_are_hardly_shrunk():
    x = np.random.default_rng(0).normal(size=(100_000, 3)) * [1.0, 2.0, 3.0]
    np.testing.assert_allclose(shrunk_covariance(x), x.T @ x / len(x), atol=2e-3)


def test_round_trip():
    novelty = OutOfDistribution.fit(correlated(50), correlated(50, seed=1))
    back = OutOfDistribution.from_tensors(novelty.to_tensors(), novelty.threshold)
    assert np.array_equal(back.distance(correlated(9)), novelty.distance(correlated(9)))


def test_training_features_that_are_not_finite():
    with pytest.raises(ValueError, match="features of the training images are not finite"):
        OutOfDistribution.fit(np.full((3, 2), np.inf), np.zeros((3, 2)))
