"""Changed copies of domains, for the search in LOG.md: the same people, image by image, with another look."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastmfr.domains import open_domain
from fastmfr.protocols.shared_people import share_people
from fastmfr.synthetic import write_folders, write_records

sys.path.append(str(Path(__file__).parent.parent / "bench" / "proof"))

from changed_faces import KINDS, write_copy


@pytest.mark.parametrize("write", [write_folders, write_records])
def test_a_copy_holds_the_same_people_with_another_look(write, tmp_path):
    write(tmp_path / "studio", "studio", identities=range(7, 10), images=2, size=32)
    domain = open_domain(tmp_path / "studio", "studio")
    (tmp_path / "people.csv").write_text("\n".join(write_copy(domain, 0, tmp_path)))
    copy = open_domain(tmp_path / "studio_changed", "studio_changed")
    np.testing.assert_array_equal(copy.offsets, domain.offsets)
    both, _ = share_people({"studio": domain, "studio_changed": copy}, str(tmp_path / "people.csv"))
    np.testing.assert_array_equal(both["studio"].person, both["studio_changed"].person)
    with Image.open(copy.path / copy.key(0)) as image:
        red, green, blue = np.asarray(image, int).transpose(2, 0, 1)
        assert image.size == (32, 32)
        np.testing.assert_allclose(red, green, atol=2)
        np.testing.assert_allclose(blue, green, atol=2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_look_stays_within_its_range_and_depends_on_the_draw(kind):
    pixels_HW3 = np.random.default_rng(0).random((8, 8, 3))
    one, again, other = (kind(pixels_HW3, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert one.min() >= 0
    assert one.max() <= 1
    assert np.abs(one - pixels_HW3).mean() > 0.05
    assert np.abs(one - other).max() > 0.01
