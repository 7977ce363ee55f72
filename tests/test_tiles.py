import itertools

import numpy as np
import pytest

from segapp.tiles import OVERLAP, TILE, in_tiles, places


@pytest.mark.parametrize("length", [32, TILE, TILE + 32, 1408, 2 * TILE - OVERLAP, 9024])
def test_tiles_cover_a_side_and_overlap(length):
    tiles = places(length)
    assert tiles[0].start == 0
    assert tiles[-1].stop == length
    sides = {tile.stop - tile.start for tile in tiles}
    assert len(sides) == 1
    assert max(sides) <= TILE
    assert all(side % 32 == 0 for side in sides)
    for before, after in itertools.pairwise(tiles):
        assert before.stop - after.start >= OVERLAP


def test_no_more_is_computed_than_needed():
    assert places(TILE) == [slice(0, TILE)]
    assert [t.stop - t.start for t in places(1408)] == [768, 768]


def test_small_slices_go_through_whole():
    shapes = []

    def engine(batch):
        shapes.append(batch.shape)
        return batch

    in_tiles(engine, np.zeros((3, 1, 512, 2048), np.float32))
    assert shapes == [(3, 1, 512, 2048)]


@pytest.mark.parametrize("size", [(1536, 1600), (64, 40000), (2080, 1056), (1024, 1056)])
def test_where_the_network_looks_at_a_pixel_alone_tiles_change_nothing(size):
    image = np.random.default_rng(0).normal(size=(1, 1, *size)).astype(np.float32)
    sides = []

    def engine(batch):
        sides.extend(batch.shape[2:])
        return np.concatenate([batch, -2 * batch], axis=1)

    found = in_tiles(engine, image)
    assert max(sides) <= TILE
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.concatenate([image, -2 * image], axis=1), atol=1e-5)


def test_no_seam_shows_where_tiles_meet():
    """A network that goes wrong at the edges of what it sees, as all do."""

    def engine(batch):
        out = np.zeros_like(batch)
        out[..., 16:-16, 16:-16] = 1
        return out

    found = in_tiles(engine, np.zeros((1, 1, 2048, 2048), np.float32))
    inner = found[0, 0, 16:-16, 16:-16]
    assert inner.min() > 0.8
